"""AlignedResampler: equal to soxr on the whole signal, wherever it is taken up again."""

import numpy as np
import pytest
import soxr

from streamenc.serve.inputs import aligned
from streamenc.serve.inputs.aligned import PERIODS, AlignedResampler, grid

PAIRS = [(rate, to) for rate, targets in PERIODS.items() for to in targets]
NEEDED = [
    (48000, 24000), (44100, 24000), (48000, 16000), (44100, 16000), (16000, 24000),
    (8000, 16000), (8000, 24000), (24000, 16000), (44100, 48000), (48000, 44100),
]  # fmt: skip
UNKNOWN = [(8000, 48000), (8000, 44100), (11025, 48000)]


def noise(samples, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (channels, samples)).astype(np.float32)


def taken_up(old):
    new = AlignedResampler(old.rate, old.to, old.channels)
    new.restore(old.taken, old.given, old.recent.copy())
    return new


def run(rate, to, samples, cuts):
    """All output, taken up by another resampler at each cut."""
    resampler = AlignedResampler(rate, to, len(samples))
    out = []
    for begin, end in zip([0, *cuts], [*cuts, samples.shape[1]], strict=True):
        out.append(resampler.push(samples[:, begin:end]))
        resampler = taken_up(resampler)
    return np.concatenate([*out, resampler.flush()], axis=1)


def whole(samples, rate, to):
    return soxr.resample(samples.T, rate, to, quality="HQ").T


@pytest.mark.parametrize(("rate", "to"), PAIRS)
def test_the_listed_periods_hold(rate, to):
    assert grid(rate, to).period == PERIODS[rate][to]


@pytest.mark.parametrize(("rate", "to"), NEEDED)
@pytest.mark.parametrize("seconds", [0.3, 7.0])
def test_equal_to_soxr_wherever_it_is_taken_up(rate, to, seconds):
    samples = noise(round(rate * seconds) + 17)
    rng = np.random.default_rng(rate + to)
    cuts = sorted(rng.integers(0, samples.shape[1], 12).tolist())
    out = run(rate, to, samples, cuts)
    assert np.array_equal(out, whole(samples, rate, to))


def test_two_channels():
    samples = noise(150_000, 2)
    out = run(48000, 24000, samples, [1, 1000, 77_777, 77_778, 140_000])
    assert np.array_equal(out, whole(samples, 48000, 24000))


@pytest.mark.parametrize(("rate", "to"), UNKNOWN)
def test_nearly_equal_where_no_period_is_known(rate, to):
    samples = noise(rate * 4)
    assert not AlignedResampler(rate, to, 1).exact
    out = run(rate, to, samples, [rate // 3, rate * 2, rate * 3 + 5])
    wanted = whole(samples, rate, to)
    assert out.shape == wanted.shape
    assert np.abs(out - wanted).max() < 2e-6


def test_a_period_that_is_none_is_found_out(monkeypatch):
    monkeypatch.setitem(PERIODS, 48000, {24000: 1658})
    assert aligned._period(48000, 24000, 2, 6400) == 0


def test_a_period_that_is_not_listed_is_looked_for(monkeypatch):
    monkeypatch.setitem(PERIODS, 44100, {})
    assert aligned._period(44100, 24000, 147, 5880) == 6027


def test_the_same_after_ten_minutes():
    """The input is silence: only the counts are large."""
    taken = 600 * 44100 + 11
    reference = soxr.ResampleStream(44100, 24000, 1, dtype="float32", quality="HQ")
    given = len(reference.resample_chunk(np.zeros(taken, np.float32)))
    resampler = AlignedResampler(44100, 24000, 1)
    resampler.restore(taken, given, np.zeros((1, resampler.grid.memory), np.float32))
    samples = noise(44100)
    wanted = np.concatenate(
        [reference.resample_chunk(samples[0]), reference.resample_chunk(samples[0, :0], last=True)]
    )
    got = np.concatenate([resampler.push(samples), resampler.flush()], axis=1)[0]
    assert np.array_equal(got, wanted)
