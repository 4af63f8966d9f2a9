from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from streamenc.errors import FitError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.nodes.runs import Runs

INFO = StreamInfo("codes", Fraction(1, 16_000), Fraction(50), (1, None), "uint16", "hubert", 100)


def frames(*parts: list[int], gap_before: int | None = None) -> list[Frame]:
    """Frames of 320 ticks an item, one after the other; before one of them something is missing."""
    made, pts = [], 1000
    for index, codes in enumerate(parts):
        pts += 640 * (index == gap_before)
        data = np.array([codes], np.uint16)
        made.append(Frame(data, pts, 320 * len(codes), index, index == gap_before, 10 + index))
        pts += 320 * len(codes)
    return made


def runs(frames: list[Frame], node: Runs | None = None) -> list[Frame]:
    node = node or Runs()
    assert node.open(INFO) == replace(INFO, shape=(1, 1))
    out = [made for frame in frames for made in node.push(frame)]
    return [*out, *node.flush()]


def test_runs_across_frames_and_how_long_they_lasted():
    out = runs(frames([7, 7, 3], [3], [3, 7, 9], [9, 9]))
    assert [f.data.tolist() for f in out] == [[[7]], [[3]], [[7]], [[9]]]
    assert [(f.pts, f.duration) for f in out] == [
        (1000, 640),
        (1640, 960),
        (2600, 320),
        (2920, 960),
    ]
    assert [f.seq for f in out] == [0, 1, 2, 3]
    assert [f.arrived_ns for f in out] == [10, 12, 12, 13]


def test_a_gap_ends_a_run():
    out = runs(frames([5, 5], [5], [5], gap_before=1))
    assert [(f.pts, f.duration, f.discontinuity) for f in out] == [
        (1000, 640, False),
        (2280, 640, True),
    ]


def test_a_long_run_shows_signs_of_life():
    out = runs(frames([5] * 10, [5] * 10), Runs(max_seconds=0.1))
    assert [f.duration for f in out] == [1600] * 4
    assert out[-1].pts + out[-1].duration == 1000 + 20 * 320


def test_nothing_gives_nothing():
    assert runs([]) == []


@pytest.mark.parametrize("info", [replace(INFO, kind="features"), replace(INFO, shape=(2, None))])
def test_only_units_have_runs(info):
    with pytest.raises(FitError, match="codes of one codebook"):
        Runs().open(info)
