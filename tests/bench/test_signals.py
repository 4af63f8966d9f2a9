"""The clip in any rate and length, also where it is missing."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from bench import signals


@pytest.fixture(params=["clip", "missing"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "missing":
        monkeypatch.setattr(signals, "CLIP", tmp_path / "none.flac")
    return str(request.param)


@pytest.mark.parametrize(("rate", "samples"), [(24_000, 1920), (16_000, 16_000 * 20), (22_050, 5)])
def test_speech_has_the_rate_and_length_asked_for(either: str, rate: int, samples: int) -> None:
    audio = signals.speech(rate, samples)
    assert audio.shape == (samples,)
    assert audio.dtype == np.float32
    assert np.abs(audio).max() <= 1
    if samples > rate:
        assert audio.std() > 0.01


def test_the_clip_is_written_as_wav(either: str, tmp_path: Path) -> None:
    with wave.open(str(signals.write_wav(tmp_path / "clip.wav", 1.5))) as file:
        assert file.getframerate() == signals.SYNTHETIC_RATE
        assert file.getnframes() == round(1.5 * file.getframerate())
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    assert samples.std() > 100
