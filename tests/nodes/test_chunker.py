"""Chunker: exact lengths, exact times, nothing lost at a gap."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.timeline import Timeline
from streamenc.nodes.chunker import Chunker


def audio_info(rate=24000, time_base=None, channels=1):
    return StreamInfo(
        "audio", time_base or Fraction(1, rate), Fraction(rate), (channels, None), "float32"
    )


def ramp(start, count, channels=1):
    """Samples that are their own index, so that each one can be found again."""
    return np.tile(np.arange(start, start + count, dtype=np.float32), (channels, 1))


def frame(start, count, pts=None, seq=0, arrived_ns=0, discontinuity=False, channels=1):
    return Frame(
        ramp(start, count, channels),
        pts=start if pts is None else pts,
        duration=count,
        seq=seq,
        arrived_ns=arrived_ns,
        discontinuity=discontinuity,
    )


def opened(lead, hop, info=None):
    chunker = Chunker(lead, hop)
    chunker.open(info or audio_info())
    return chunker


@given(
    lengths=st.lists(st.integers(0, 50), max_size=30),
    lead=st.integers(1, 40),
    hop=st.integers(1, 40),
    channels=st.integers(1, 3),
    first_pts=st.integers(-1000, 10**12),
)
def test_any_input_lengths_give_lead_then_hops_then_the_tail(
    lengths, lead, hop, channels, first_pts
):
    chunker = opened(lead, hop, audio_info(channels=channels))
    out, start = [], 0
    for seq, count in enumerate(lengths):
        out += chunker.push(
            frame(start, count, first_pts + start, seq, arrived_ns=start + count, channels=channels)
        )
        start += count
    whole = [f.data.shape[-1] for f in out]
    assert whole == ([lead] + [hop] * (len(out) - 1) if out else [])
    held_back = start - sum(whole)
    assert held_back < (hop if out else lead)
    out += chunker.flush()
    assert sum(f.data.shape[-1] for f in out) == start
    position = 0
    ends = np.cumsum(lengths)
    for seq, f in enumerate(out):
        count = f.data.shape[-1]
        assert count > 0
        np.testing.assert_array_equal(f.data, ramp(position, count, channels))
        assert (f.pts, f.duration, f.seq) == (first_pts + position, count, seq)
        assert not f.discontinuity
        position += count
        assert f.arrived_ns == ends[np.searchsorted(ends, position)]
    assert not list(chunker.flush())


def test_a_chunk_within_one_frame_is_a_view():
    chunker = opened(4, 4)
    whole = frame(0, 10)
    out = list(chunker.push(whole))
    assert [f.data.shape[-1] for f in out] == [4, 4]
    assert all(np.shares_memory(f.data, whole.data) for f in out)


def test_times_do_not_drift_in_a_time_base_that_does_not_divide():
    info = audio_info(rate=24000, time_base=Fraction(1, 44100))
    chunker = opened(1920, 1920, info)
    pushed, out = 0, []
    for seq in range(3000):
        pts = round(Fraction(pushed * 44100, 24000))
        data = np.zeros((1, 1001), np.float32)
        out += chunker.push(Frame(data, pts=pts, duration=1839, seq=seq))
        pushed += 1001
    assert chunker.restarts == 0
    for k, f in enumerate(out):
        assert abs(f.pts - Fraction(k * 1920 * 44100, 24000)) <= Fraction(1, 2)
    for before, after in zip(out, out[1:], strict=False):
        assert before.pts + before.duration == after.pts


@pytest.mark.parametrize("rounding", ["nearest", "down"])
def test_a_container_that_counts_in_milliseconds_makes_no_gap(rounding):
    chunker = opened(1920, 1920, audio_info(44100, Fraction(1, 1000)))
    for k in range(5000):
        exact = Fraction(k * 1024 * 1000, 44100)
        pts = 7 + (round(exact) if rounding == "nearest" else int(exact))
        chunker.push(Frame(np.zeros((1, 1024), np.float32), pts=pts, duration=23, seq=k))
    assert chunker.restarts == 0


def test_a_flag_emits_what_is_held_back_and_restarts_with_lead():
    chunker = opened(8, 4)
    out = list(chunker.push(frame(0, 14, arrived_ns=1)))  # 8 + 4, 2 held back
    out += chunker.push(frame(100, 9, arrived_ns=2, discontinuity=True))
    out += chunker.push(frame(109, 3, arrived_ns=3))
    out += chunker.flush()
    got = [(f.pts, f.data.shape[-1], f.discontinuity, f.arrived_ns) for f in out]
    assert got == [
        (0, 8, False, 1),
        (8, 4, False, 1),
        (12, 2, False, 1),
        (100, 8, True, 2),
        (108, 4, False, 3),
    ]
    assert [f.seq for f in out] == [0, 1, 2, 3, 4]
    assert np.concatenate([f.data for f in out], -1).tolist() == [[*range(14), *range(100, 112)]]
    assert chunker.restarts == 1


@pytest.mark.parametrize("jump", [100, -10, -5000])
def test_an_unflagged_jump_restarts(jump):
    chunker = opened(8, 4)
    list(chunker.push(frame(0, 10)))
    out = list(chunker.push(frame(10, 8, pts=10 + jump)))
    assert [(f.pts, f.data.shape[-1], f.discontinuity) for f in out] == [
        (8, 2, False),
        (10 + jump, 8, True),
    ]


@pytest.mark.parametrize(
    ("jump", "flag", "message"),
    [
        (1728, False, "sound starts anew at 1.656 s: 72 ms are missing"),
        (-37, False, "sound starts anew at 1.582 s: its time goes back by 1.542 ms"),
        (0, True, "sound starts anew at 1.584 s: it is flagged as not following on"),
    ],
)
def test_a_restart_is_told_in_seconds_once(jump, flag, message, caplog):
    chunker = opened(1920, 1920)
    list(chunker.push(frame(0, 38016)))
    with caplog.at_level("WARNING"):
        list(chunker.push(frame(38016, 960, pts=38016 + jump, discontinuity=flag)))
        list(chunker.push(frame(38976, 960, pts=99999)))
    assert caplog.messages == [message]


def test_the_flag_of_an_empty_frame_is_not_lost():
    chunker = opened(4, 4)
    assert list(chunker.push(frame(50, 0, discontinuity=True))) == []
    (out,) = chunker.push(frame(50, 4))
    assert out.discontinuity and out.pts == 50


def test_what_is_no_audio_and_lengths_out_of_range_are_refused():
    codes = StreamInfo("codes", Fraction(1, 25), Fraction(25), (8, None), "uint16")
    with pytest.raises(FitError, match="cuts audio"):
        Chunker(1, 1).open(codes)
    for bad in ({"lead": 0, "hop": 1}, {"lead": 1, "hop": -1}):
        with pytest.raises(UsageError, match="at least 1"):
            Chunker(**bad)
    Chunker(1, 1).close()


@given(
    count=st.integers(0, 10**12),
    off=st.integers(-5000, 5000),
    rate=st.sampled_from([8000, 22050, 24000, 44100]),
    base=st.sampled_from([1000, 44100, 48000, 90000, 10**9]),
)
def test_a_timeline_measures_the_gap_to_within_a_sample(count, off, rate, base):
    timeline = Timeline(Fraction(rate), Fraction(1, base))
    timeline.anchor(123)
    gap = timeline.gap(count, timeline.pts(count + off))
    assert gap == 0 if off == 0 else abs(gap - off) <= 1 + 1.5 * rate / base
