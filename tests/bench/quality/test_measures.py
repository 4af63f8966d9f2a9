"""Every measure on signals where the answer is known."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import signals
from bench.quality import measures
from bench.quality.measures import RATE, Audio
from streamenc.errors import InputError, MediaError, UsageError


@pytest.fixture(scope="module")
def noise() -> Audio:
    return np.random.default_rng(1).normal(0, 0.02, 2 * RATE).astype(np.float32)


def test_recordings_are_read_as_they_are(folder: Path) -> None:
    clips = measures.read_clips(folder, 2.0)
    assert [clip.name for clip in clips] == ["a.wav", "speaker/b.flac"]
    assert [len(clip.audio) / clip.rate for clip in clips] == pytest.approx([1.2, 2.0])
    # No level is changed.
    expected = signals.speech(clips[1].rate, len(clips[1].audio))
    assert np.allclose(clips[1].audio, expected, atol=1e-4)
    assert len(clips[1].at(RATE)) == 2 * RATE
    assert [clip.name for clip in measures.read_clips(folder, 2.0, 1)] == ["a.wav"]


def test_folders_without_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no folder"):
        measures.read_clips(tmp_path / "none", 1)
    with pytest.raises(MediaError, match="holds no recordings"):
        measures.read_clips(tmp_path, 1)
    (tmp_path / "broken.wav").write_bytes(b"not a sound")
    with pytest.raises(MediaError, match=r"broken\.wav"):
        measures.read_clips(tmp_path, 1)


@pytest.mark.usefixtures("pesq_and_stoi")
def test_a_signal_against_itself_is_perfect(speech: Audio) -> None:
    values = measures.measure(speech, speech)
    assert values["pesq"] == pytest.approx(4.64, abs=0.01)
    assert values["stoi"] == pytest.approx(1, abs=1e-6)
    assert values["si_sdr_db"] == measures.SI_SDR_LIMIT_DB


@pytest.mark.usefixtures("pesq_and_stoi")
def test_more_noise_is_worse_in_every_measure(speech: Audio, noise: Audio) -> None:
    clear, noisy = (measures.measure(speech, speech + gain * noise) for gain in (0.1, 1))
    for name in clear:
        assert clear[name] > noisy[name], name  # type: ignore[operator]


@pytest.mark.usefixtures("pesq_and_stoi")
def test_levels_do_not_count(speech: Audio, noise: Audio) -> None:
    heard = speech + noise
    for name, value in measures.measure(speech, heard).items():
        assert measures.measure(speech, 0.5 * heard)[name] == pytest.approx(value, rel=0.01)


@pytest.mark.usefixtures("pesq_and_stoi")
def test_silence_and_shreds_have_no_quality(speech: Audio) -> None:
    silence = np.zeros_like(speech)
    assert set(measures.measure(silence, speech).values()) == {None}
    shred = speech[: RATE // 5]
    values = measures.measure(shred, shred)
    assert values["pesq"] is values["stoi"] is None


@pytest.mark.usefixtures("pesq_and_stoi")
def test_a_mute_codec_is_measured(speech: Audio) -> None:
    values = measures.measure(speech, np.zeros_like(speech))
    assert values["si_sdr_db"] == -measures.SI_SDR_LIMIT_DB
    assert values["pesq"] == measures.PESQ_LEAST
    assert values["stoi"] == pytest.approx(0, abs=1e-6)
    assert measures.pesq_wb(speech, speech * np.float32(1e-25)) == measures.PESQ_LEAST


@pytest.mark.usefixtures("pesq_and_stoi")
def test_what_else_pesq_refuses_is_no_score(speech: Audio, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> float:
        raise ValueError("of another kind")

    monkeypatch.setattr("pesq.pesq", refuse)
    with pytest.raises(ValueError, match="of another kind"):
        measures.pesq_wb(speech, speech)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [(lambda x: x[:-1], "of one length"), (lambda x: x * np.nan, "not finite")],
)
def test_what_cannot_be_compared_is_refused(
    speech: Audio, spoil: Callable[[Audio], Audio], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        measures.measure(speech, spoil(speech))


@pytest.mark.parametrize("wanted_db", [-7.0, 0.0, 10.0, 60.0])
@pytest.mark.parametrize("scale", [1.0, -0.3, 5.0])
def test_si_sdr_is_what_was_mixed(wanted_db: float, scale: float) -> None:
    t = np.arange(RATE) / RATE
    target, other = np.sin(2 * np.pi * 200 * t), np.sin(2 * np.pi * 300 * t)
    mixed = scale * (target + 10 ** (-wanted_db / 20) * other)
    assert measures.si_sdr_db(target, mixed) == pytest.approx(wanted_db, abs=1e-6)


@pytest.mark.usefixtures("visqol")
def test_visqol_ranks_and_knows_silence(speech: Audio, noise: Audio) -> None:
    visqol = measures.Visqol()
    same, noisy = (visqol(speech, speech + gain * noise) for gain in (0, 1))
    assert same is not None and noisy is not None
    # Speech against itself: 4.1 to 4.6 by the lattice, 5 by the polynomial.
    assert 1 <= noisy < same - 0.5
    assert 4 < same < 4.8
    assert visqol(np.zeros_like(speech), speech) is None


@pytest.mark.parametrize("lag", [-800, -1, 0, 3, 123])
def test_a_lag_is_found(speech: Audio, lag: int) -> None:
    moved = speech[-lag:] if lag < 0 else np.pad(speech, (lag, 0))
    assert measures.lag_samples(speech, measures.fitted(moved, len(speech))) == lag
    assert measures.lag_samples(speech, np.zeros_like(speech)) == 0


def test_an_estimate_is_a_mean_with_an_interval() -> None:
    values = np.random.default_rng(2).normal(3, 1, 400).tolist()
    known = measures.estimate([*values, None, None])
    assert known.mean == pytest.approx(np.mean(values))
    assert (known.count, known.skipped) == (400, 2)
    # 1.96 standard errors.
    assert known.high - known.low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert known.low < known.mean < known.high
    assert measures.estimate(values[:1]).low == pytest.approx(values[0])


def test_an_estimate_of_a_rate_weighs() -> None:
    rate = measures.estimate([1, 0, 3], [2, 0, 10])
    assert rate.mean == pytest.approx(4 / 12)
    assert measures.estimate([2], [0]).count == 0
    assert math.isnan(measures.estimate([None, None]).mean)


@pytest.mark.parametrize(
    ("module", "extra"), [("pesq", "quality"), ("matplotlib", "plot"), ("visqol", "--no-visqol")]
)
def test_a_missing_package_is_named(
    module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=rf"{module} is missing: pip install 'streamenc.*{extra}"):
        measures.required(module)
