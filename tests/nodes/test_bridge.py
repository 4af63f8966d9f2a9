"""Bridge: short gaps of a live video are no reason to start anew."""

from __future__ import annotations

import logging
from fractions import Fraction

import pytest

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import StreamInfo
from streamenc.nodes.bridge import Bridge
from tests.support.drive import flagged, images, through, video_info

INFO = video_info(8, 8)


def test_a_short_gap_is_bridged_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    node = Bridge(200)
    frames = [*images(2, 8, 8), *flagged(images(2, 8, 8, pts=280))]
    with caplog.at_level(logging.WARNING):
        _, out = through(INFO, frames, node)
    assert [frame.discontinuity for frame in out] == [False] * 4
    assert [frame.pts for frame in out] == [0, 40, 280, 320]
    assert (node.gaps_bridged, node.bridged_ms) == (1, 200.0)
    assert "left out (200 ms" in caplog.text


@pytest.mark.parametrize("pts", [281, 40, 0, -500])
def test_longer_gaps_and_jumps_backward_stay_flagged(pts: int) -> None:
    node = Bridge(200)
    _, out = through(INFO, [*images(2, 8, 8), *flagged(images(1, 8, 8, pts=pts))], node)
    assert [frame.discontinuity for frame in out] == [False, False, True]
    assert node.gaps_bridged == 0


def test_a_rate_that_was_a_guess() -> None:
    """Of 60 images a second that are said to be 25: what follows a gap comes before its end."""
    frames = images(2, 8, 8) + [f.with_(discontinuity=True) for f in images(1, 8, 8, pts=73)]
    node = Bridge(200)
    _, out = through(INFO, frames, node)
    assert not any(frame.discontinuity for frame in out)
    assert (node.gaps_bridged, node.bridged_ms) == (1, 0.0)


def test_a_stream_that_begins_flagged_stays_so() -> None:
    _, out = through(INFO, flagged(images(1, 8, 8)), Bridge(1000))
    assert out[0].discontinuity


def test_what_it_does_not_take() -> None:
    sound = StreamInfo("audio", Fraction(1, 8000), Fraction(8000), (1, None), "float32")
    with pytest.raises(FitError, match="Bridge takes video"):
        Bridge(1).open(sound)
    for wrong in (-1, float("nan")):
        with pytest.raises(UsageError, match="0 or more"):
            Bridge(wrong)
