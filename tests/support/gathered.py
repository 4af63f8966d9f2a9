"""Files whose frames are gathered hold the same sound as frame by frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamenc.graph.frames import Frame
from streamenc.io.media.audiosource import MediaSource


def runs(frames: Sequence[Frame]) -> list[tuple[int, bool, np.ndarray[Any, Any]]]:
    """From break to break: pts of the first sample, whether it is flagged, and the samples."""
    found: list[tuple[int, bool, list[Frame]]] = []
    for frame in frames:
        if frame.discontinuity or not found:
            found.append((frame.pts, frame.discontinuity, []))
        found[-1][2].append(frame)
    return [
        (pts, flag, np.concatenate([frame.data for frame in pieces], axis=1))
        for pts, flag, pieces in found
    ]


def check_gathered(path: Path, frames: Sequence[Frame], one_by_one: MediaSource) -> None:
    """AssertionError: what is gathered is not what `frames` of `one_by_one` are, to the bit."""
    source = MediaSource(str(path), stream=one_by_one.stream)
    source.gather()
    try:
        info = source.open_blocking()
        gathered = list(iter(source.read, None))
    finally:
        source.close_blocking()
    for (pts, flag, data), (own_pts, own_flag, own) in zip(
        runs(frames), runs(gathered), strict=True
    ):
        assert (pts, flag) == (own_pts, own_flag)
        assert np.array_equal(data, own, equal_nan=True)
    assert [frame.seq for frame in gathered] == list(range(len(gathered)))
    for frame, following in zip(gathered, gathered[1:], strict=False):
        assert frame.duration == frame.data.shape[1]
        assert following.discontinuity or frame.duration >= info.rate
        assert following.discontinuity or following.pts == frame.pts + frame.duration
    assert (source.lost, source.broken, source.remarks) == (
        one_by_one.lost,
        one_by_one.broken,
        one_by_one.remarks,
    )
