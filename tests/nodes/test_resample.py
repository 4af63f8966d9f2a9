"""Resample: equal to soxr on the whole signal, on time, and whole at every gap."""

from fractions import Fraction

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.resample import Resample

RATES = [(48000, 24000), (44100, 24000), (8000, 24000), (96000, 24000), (11025, 24000)]


def audio_info(rate, channels=1, time_base=None):
    return StreamInfo(
        "audio", time_base or Fraction(1, rate), Fraction(rate), (channels, None), "float32"
    )


def cut(samples, lengths, pts=0, arrived_ns=0):
    """`samples` (channels, n) in frames of `lengths`, repeated; in a time base of one sample."""
    start, k, frames = 0, 0, []
    while start < samples.shape[-1]:
        data = samples[:, start : start + lengths[k % len(lengths)]]
        count = data.shape[-1]
        frames.append(
            Frame(data, pts=pts + start, duration=count, seq=k, arrived_ns=arrived_ns + k)
        )
        start, k = start + count, k + 1
    return frames


def run(node, frames):
    out = [f for frame in frames for f in node.push(frame)]
    return out + list(node.flush())


def joined(frames):
    return np.concatenate([f.data for f in frames], axis=-1)


@given(
    rates=st.sampled_from(RATES),
    quality=st.sampled_from(["QQ", "LQ", "MQ", "HQ", "VHQ"]),
    channels=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    total=st.integers(1, 20_000),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_any_chunking_equals_the_whole(rates, quality, channels, lengths, total, seed):
    rate, rate_out = rates
    samples = np.random.default_rng(seed).uniform(-1, 1, (channels, total)).astype(np.float32)
    node = Resample(rate_out, quality=quality)
    info = node.open(audio_info(rate, channels))
    assert (info.rate, info.time_base, info.shape) == (
        rate_out,
        Fraction(1, rate),
        (channels, None),
    )
    frames = cut(samples, lengths, pts=1000, arrived_ns=50)
    out = run(node, frames)
    whole = soxr.resample(samples.T, rate, rate_out, quality=quality).T
    assert abs(whole.shape[-1] - total * rate_out / rate) <= 0.5
    if whole.shape[-1] == 0:
        assert out == []
        return
    assert joined(out).shape == whole.shape
    np.testing.assert_allclose(joined(out), whole, atol=1e-6)
    ends = [f.pts - 1000 + f.duration for f in frames]
    count = 0
    for seq, f in enumerate(out):
        assert f.seq == seq and not f.discontinuity and f.data.shape[-1]
        assert f.data.dtype == np.float32 and f.data.flags.c_contiguous
        assert abs(f.pts - 1000 - Fraction(count * rate, rate_out)) <= Fraction(1, 2)
        count += f.data.shape[-1]
        assert abs(f.pts + f.duration - 1000 - Fraction(count * rate, rate_out)) <= Fraction(1, 2)
        # The frame in which the last output sample sounds (past the end by rounding: the last one).
        sounds_in = min(np.searchsorted(ends, count * rate / rate_out), len(ends) - 1)
        assert f.arrived_ns == 50 + sounds_in


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("quality", ["QQ", "LQ", "HQ"])
def test_a_pulse_stays_at_its_time(rates, quality):
    rate, rate_out = rates
    center = rate // 3 + 7
    time = (np.arange(rate) - center) / rate
    pulse = np.exp(-((time * 1000) ** 2)).astype(np.float32)[None]
    node = Resample(rate_out, quality=quality)
    node.open(audio_info(rate, time_base=Fraction(1, rate * rate_out)))  # exact for in and out
    frames = [f.with_(pts=f.pts * rate_out) for f in cut(pulse, [rate // 50], pts=10_000)]
    out = run(node, frames)
    weights = joined(out)[0].astype(np.float64)
    times = np.concatenate(
        [f.pts / rate_out + np.arange(f.data.shape[-1]) * rate / rate_out for f in out]
    )
    centroid = (weights * times).sum() / weights.sum()
    assert abs(centroid - 10_000 - center) <= 0.1


@pytest.mark.parametrize(("quality", "alias_db"), [("LQ", -100), ("HQ", -120)])
def test_what_lies_above_the_new_band_is_gone(quality, alias_db):
    tone = np.sin(2 * np.pi * 15_000 / 48_000 * np.arange(48_000)).astype(np.float32)[None]
    node = Resample(24_000, quality=quality)
    node.open(audio_info(48_000))
    out = joined(run(node, cut(tone, [960])))[0, 4000:-4000]
    assert 20 * np.log10(np.abs(out).max()) < alias_db


@pytest.mark.parametrize(("quality", "at_most_ms"), [("QQ", 1), ("LQ", 25), ("HQ", 45)])
def test_the_delay_is_measured(quality, at_most_ms):
    node = Resample(24_000, quality=quality)
    node.open(audio_info(48_000))
    frames = cut(np.zeros((1, 48_000), np.float32), [960])
    taken = given_out = held_back = 0
    for f in frames:
        given_out += sum(o.data.shape[-1] for o in node.push(f))
        taken += f.data.shape[-1]
        held_back = max(held_back, taken // 2 - given_out)
    assert node.delay_samples == held_back
    assert held_back / 24 <= at_most_ms
    if quality != "QQ":
        assert held_back / 24 > 1


def test_arrival_counts_the_resamplers_delay():
    """What comes out at a push sounded earlier: its arrival is that of an older frame."""
    node = Resample(24_000)
    node.open(audio_info(48_000))
    lags = [
        f.arrived_ns - o.arrived_ns
        for f in cut(np.zeros((1, 96_000), np.float32), [960])
        for o in node.push(f)
    ]
    assert lags and min(lags) >= 0 and max(lags) >= 1


@pytest.mark.parametrize("how", ["flag", "forward", "back"])
def test_a_discontinuity_completes_the_old_stream_and_starts_a_new_one(how):
    rng = np.random.default_rng(1)
    first = rng.uniform(-1, 1, (1, 5001)).astype(np.float32)
    second = rng.uniform(-1, 1, (1, 7001)).astype(np.float32)
    pts = {"flag": 5001, "forward": 9000, "back": 100}[how]
    node = Resample(24_000)
    node.open(audio_info(44_100))
    frames = cut(second, [441], pts=pts)
    if how == "flag":
        frames[0] = frames[0].with_(discontinuity=True)
    out = run(node, cut(first, [441]) + frames)
    (restart,) = [k for k, f in enumerate(out) if f.discontinuity]
    assert out[restart].pts == pts
    assert [f.seq for f in out] == list(range(len(out)))
    for part, samples in ((out[:restart], first), (out[restart:], second)):
        whole = soxr.resample(samples[0], 44_100, 24_000)
        np.testing.assert_allclose(joined(part)[0], whole, atol=1e-6)


def test_an_hour_in_a_time_base_that_does_not_divide_keeps_time():
    node = Resample(24_000, quality="QQ")
    node.open(audio_info(44_100, time_base=Fraction(1, 1000)))
    silence = np.zeros((1, 44_100), np.float32)
    count = 0
    for second in range(3600):
        for f in node.push(Frame(silence, pts=second * 1000, duration=1000, seq=second)):
            assert abs(f.pts - Fraction(count, 24)) <= Fraction(1, 2)
            assert not f.discontinuity
            count += f.data.shape[-1]
    assert abs(count - 3600 * 24_000) < 100


@pytest.mark.parametrize("rate_out", [48_000, 24_000])
def test_mixing(rate_out):
    rng = np.random.default_rng(2)
    samples = rng.uniform(-1, 1, (6, 4800)).astype(np.float32)

    def mixed(count, channels):
        node = Resample(rate_out, channels=channels)
        info = node.open(audio_info(48_000, count))
        out = joined(run(node, cut(samples[:count], [960, 7])))
        assert info.shape == (out.shape[0], None)
        return out

    mono = mixed(1, None)
    np.testing.assert_array_equal(mixed(1, 2), np.concatenate([mono, mono]))
    assert mixed(6, None).shape[0] == 6
    assert mixed(2, 2).shape[0] == 2
    for count in (2, 6):
        expected = samples[:count].mean(axis=0)
        if rate_out != 48_000:
            expected = soxr.resample(expected, 48_000, rate_out)
        np.testing.assert_allclose(mixed(count, 1)[0], expected, atol=1e-6)
    with pytest.raises(FitError, match="cannot mix 5 channels to 2.*--channel 0,1"):
        Resample(rate_out, channels=2).open(audio_info(48_000, 5))


@pytest.mark.parametrize("channels", [None, 2])
def test_what_fits_already_passes_untouched(channels):
    node = Resample(24_000, channels=channels)
    info = audio_info(24_000, 2)
    assert node.open(info) == info
    frames = cut(np.zeros((2, 100), np.float32), [7])
    frames[3] = frames[3].with_(pts=999, discontinuity=True)
    out = run(node, frames)
    assert len(out) == len(frames) and all(a is b for a, b in zip(out, frames, strict=True))
    assert node.delay_samples == 0


def test_refusals():
    codes = StreamInfo("codes", Fraction(1, 25), Fraction(25), (8, None), "uint16")
    with pytest.raises(FitError, match="takes audio"):
        Resample(24_000).open(codes)
    with pytest.raises(UsageError, match="rate=0"):
        Resample(0)
    with pytest.raises(UsageError, match="channels=3"):
        Resample(24_000, channels=3)
    with pytest.raises(
        UsageError, match="'quality' must be one of QQ, LQ, MQ, HQ, VHQ; got 'best'"
    ):
        Resample(24_000, quality="best")
    Resample(24_000).close()
    assert list(Resample(24_000).flush()) == []
