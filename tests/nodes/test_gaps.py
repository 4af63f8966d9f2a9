"""Gaps: short ones are no reason to start anew; sound gets silence, images keep their times."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.chunker import Chunker
from streamenc.nodes.gaps import Gaps
from tests.support.drive import audio_info, flagged, images, through, video_info

VIDEO = video_info(8, 8)


def ramp(start: int, count: int, **fields: Any) -> Frame:
    """Samples that are their own index, at that time where `fields` name no other."""
    data = np.arange(start, start + count, dtype=np.float32)[None]
    return Frame(data, **{"pts": start, "duration": count, "seq": 0, **fields})


# Sound


def test_a_short_gap_is_concealed_with_zeros_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    node, chunker = Gaps(6), Chunker(8, 4)
    frames = [ramp(1, 10, pts=0), ramp(100, 8, pts=16, discontinuity=True, arrived_ns=7)]
    with caplog.at_level(logging.INFO):
        _, filled = through(audio_info(1000), frames, node)
    assert [(f.pts, f.duration, f.seq, f.arrived_ns) for f in filled] == [
        (0, 10, 0, 0),
        (10, 6, 1, 7),
        (16, 8, 2, 7),
    ]
    assert "concealed a gap of 6 samples before pts 16" in caplog.text
    _, out = through(audio_info(1000), filled, chunker)
    samples = np.concatenate([f.data for f in out], -1)[0]
    assert samples.tolist() == [*range(1, 11), *[0] * 6, *range(100, 108)]
    assert [f.pts for f in out] == [0, 8, 12, 16, 20]
    assert not any(f.discontinuity for f in out)
    assert (node.gaps_concealed, node.concealed_ms, chunker.restarts) == (1, 6.0, 0)


@pytest.mark.parametrize(("pts", "flag"), [(17, True), (17, False), (5, False), (10, True)])
def test_a_long_gap_a_step_back_and_a_flag_of_unknown_length_are_not_concealed(
    pts: int, flag: bool
) -> None:
    node, chunker = Gaps(6), Chunker(8, 4)
    frames = [ramp(0, 10), ramp(10, 8, pts=pts, discontinuity=flag)]
    _, out = through(audio_info(1000), frames, node, chunker)
    assert [f.data.shape[-1] for f in out] == [8, 2, 8]
    assert [f.discontinuity for f in out] == [False, False, True] and out[2].pts == pts
    assert (node.gaps_concealed, chunker.restarts) == (0, 1)


def test_many_concealed_gaps_keep_the_timeline() -> None:
    """Gaps of fractional samples are rounded from the anchor, so the error does not add up."""
    info = StreamInfo("audio", Fraction(1, 3000), Fraction(1000), (1, None), "float32")
    node, chunker = Gaps(100), Chunker(10, 10)
    # Behind each frame a gap of 4 1/3 samples.
    frames = [ramp(0, 10, pts=43 * k, duration=30, seq=k) for k in range(500)]
    _, out = through(info, frames, node, chunker)
    assert node.gaps_concealed == 499 and chunker.restarts == 0
    assert abs(sum(f.data.shape[-1] for f in out) - 500 * 43 / 3) <= 10 + 5


def test_the_flag_at_the_beginning_of_a_sound_stays() -> None:
    _, out = through(audio_info(1000), [ramp(0, 4, discontinuity=True)], Gaps(1000))
    assert [f.discontinuity for f in out] == [True]


# Images


def test_a_short_gap_is_bridged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    node = Gaps(200)
    frames = [*images(2, 8, 8), *flagged(images(2, 8, 8, pts=280))]
    with caplog.at_level(logging.WARNING):
        _, out = through(VIDEO, frames, node)
    assert [frame.discontinuity for frame in out] == [False] * 4
    assert [frame.pts for frame in out] == [0, 40, 280, 320]
    assert (node.gaps_concealed, node.concealed_ms) == (1, 200.0)
    assert "left out (200 ms" in caplog.text


@pytest.mark.parametrize("pts", [281, 40, 0, -500])
def test_longer_gaps_and_jumps_backward_stay_flagged(pts: int) -> None:
    node = Gaps(200)
    _, out = through(VIDEO, [*images(2, 8, 8), *flagged(images(1, 8, 8, pts=pts))], node)
    assert [frame.discontinuity for frame in out] == [False, False, True]
    assert node.gaps_concealed == 0


def test_a_rate_that_was_a_guess() -> None:
    """Of 60 images a second that are said to be 25: what follows a gap comes before its end."""
    frames = images(2, 8, 8) + [f.with_(discontinuity=True) for f in images(1, 8, 8, pts=73)]
    node = Gaps(200)
    _, out = through(VIDEO, frames, node)
    assert not any(frame.discontinuity for frame in out)
    assert (node.gaps_concealed, node.concealed_ms) == (1, 0.0)


def test_a_stream_that_begins_flagged_stays_so() -> None:
    _, out = through(VIDEO, flagged(images(1, 8, 8)), Gaps(1000))
    assert out[0].discontinuity


def test_what_it_does_not_take() -> None:
    codes = StreamInfo("codes", Fraction(1, 25), Fraction(25), (8, None), "uint16")
    with pytest.raises(FitError, match="Gaps takes audio or video"):
        Gaps(1).open(codes)
    for wrong in (-1, 1e9, float("nan")):
        with pytest.raises(UsageError, match="'conceal_ms' must be a number from 0 to 10000"):
            Gaps(wrong)
