"""Models and Opus, each at its bitrate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench import signals
from bench.quality.conditions import Subject, opus
from bench.quality.measures import RATE, Audio, Clip, fitted, lag_samples, measure
from streamenc.errors import UsageError
from tests.support import zoo


@pytest.mark.parametrize("kbps", [6.0, 16.0])
def test_opus_takes_its_bitrate_and_stays_in_time(speech: Audio, kbps: float) -> None:
    decoded, measured = opus(Clip("speech", speech, RATE), kbps)
    assert measured == pytest.approx(kbps, rel=0.01)
    assert abs(lag_samples(speech, fitted(decoded, len(speech)))) <= 1


@pytest.mark.usefixtures("pesq_and_stoi")
def test_opus_sounds_better_with_more_bits(speech: Audio) -> None:
    clip = Clip("speech", speech, RATE)
    few, many = (measure(speech, fitted(opus(clip, kbps)[0], len(speech))) for kbps in (6.0, 16.0))
    for name in few:
        assert many[name] > few[name], name  # type: ignore[operator]
    assert many["pesq"] > 2.5  # type: ignore[operator]


def test_opus_takes_other_rates_and_silence() -> None:
    clip = Clip("silence", np.zeros(22_050, np.float32), 22_050)
    decoded, measured = opus(clip, 12)
    assert np.abs(decoded).max() < 1e-4
    assert measured == pytest.approx(12, rel=0.01)
    assert len(decoded) == pytest.approx(RATE, abs=RATE // 50)


def test_bitrates_of_a_model(subject: Subject) -> None:
    conditions = subject.conditions([1, 6, 7])
    assert [condition.codebooks for condition in conditions] == [1, 6]
    assert [condition.kbps for condition in conditions] == pytest.approx([6, 36])
    assert str(conditions[0]).endswith("1 codebooks, 6 kbit/s")


def test_fewer_codebooks_are_the_first_ones(subject: Subject, speech: Audio) -> None:
    clip = Clip("speech", signals.speech(24_000, 12_000), 24_000)
    fewer = subject.codec.encode(clip.audio, codebooks=2)
    assert torch.equal(fewer, subject.codes(clip)[:, :2])


def test_a_condition_gives_16_khz(subject: Subject, speech: Audio) -> None:
    (condition,) = subject.conditions([6])
    decoded, kbps = condition.run(Clip("half a second", speech[: RATE // 2], RATE))
    assert len(decoded) == pytest.approx(RATE // 2, abs=20)
    assert kbps == pytest.approx(36)


@pytest.mark.parametrize("name", ["mel", "48k"])
def test_what_is_no_speech_codec_is_refused(name: str, tmp_path: Path) -> None:
    if name == "48k":
        zoo.save_encodec_48k(tmp_path)
        name = str(tmp_path)
    with pytest.raises(UsageError, match="wanted a codec of one channel"):
        Subject(name)
