"""A sink that only counts, for benchmarks and dry runs: `null:`."""

from __future__ import annotations

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink


class NullSink(Sink):
    """Takes any stream and drops it.

    frames  Frames taken so far.
    items   Items taken so far: samples of audio, frames of codes or features.
    """

    def __init__(self, address: str = "") -> None:
        self.address = address
        self.frames = 0
        self.items = 0

    async def open(self, info: StreamInfo) -> None:
        return None

    async def write(self, frame: Frame) -> None:
        self.frames += 1
        self.items += frame.data.shape[1]
