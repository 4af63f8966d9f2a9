"""One stream out of several that are interleaved."""

from __future__ import annotations

from collections.abc import Iterable

from streamenc.errors import FitError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform


class Select(Transform):
    """Passes one track of a mux on, as a stream of its own; several of them behind one node share
    it out.

    track  Which one, from 0.

    Raises UsageError where `track` is no such number.
    """

    def __init__(self, track: int) -> None:
        if type(track) is not int or track < 0:
            raise UsageError(f"got track={track!r}; tracks are counted from 0")
        self.track = track

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "mux":
            raise FitError(f"Select takes a mux; got {info}: leave `track` out")
        if self.track >= len(info.tracks):
            raise FitError(f"there is no track {self.track}, counted from 0, in a {info}")
        return info.tracks[self.track]

    def push(self, frame: Frame) -> Iterable[Frame]:
        return (frame.with_(track=0),) if frame.track == self.track else ()
