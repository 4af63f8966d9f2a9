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


def test_moving_images_move_and_are_like_images() -> None:
    images = signals.video(9, 48, 64)
    assert images.shape == (3, 9, 48, 64) and images.dtype == np.uint8
    assert np.array_equal(images, signals.video(9, 48, 64))
    values = images.astype(float)
    assert values.std() > 20
    # Neighbours in space and in time are alike, but nothing stands still.
    assert 0 < np.abs(np.diff(values, axis=3)).mean() < values.std() / 2
    changes = np.abs(np.diff(values, axis=1)).mean(axis=(0, 2, 3))
    assert (changes > 1).all() and (changes < values.std() / 2).all()


def test_a_clip_is_scaled_cut_and_runs_back_and_forth(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mkv"
    made = signals.video(5, 32, 64)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "bgr0"
        for t in range(5):
            shot = np.ascontiguousarray(made[:, t].transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shot, format="rgb24")))
        container.mux(stream.encode())
    assert np.array_equal(signals.video(5, 32, 64, path), made)
    # The middle of its width, at the whole height.
    images = signals.video(10, 32, 32, path)
    assert np.array_equal(images[:, :5], made[..., 16:48])
    assert np.array_equal(images[:, 5:9], made[:, [3, 2, 1, 0], :, 16:48])
    assert signals.video(2, 16, 16, path).shape == (3, 2, 16, 16)
