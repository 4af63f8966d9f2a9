"""tone: a sine, `tone:440?seconds=2`."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from streamenc import Frame, StreamInfo, options
from streamenc.graph.node import BlockingSource

RATE = 16_000
CHUNK = 1600


class Tone(BlockingSource):
    """A sine of half the full scale, as fast as it is wanted.

    address  Its frequency in Hz; 440 where that is empty.
    seconds  How long.
    """

    kind = "audio"  # what it gives, for those who want images
    replayed = True

    def __init__(self, address: str = "440", seconds: str | float = 1.0) -> None:
        self.address = address or "440"
        self.hertz = options.number("frequency", self.address, 1, RATE / 2)
        self.duration_seconds = options.number("seconds", seconds, 0, 1e6)
        self._left = round(self.duration_seconds * RATE)
        self._at = self._seq = 0

    def open_blocking(self) -> StreamInfo:
        return StreamInfo("audio", Fraction(1, RATE), Fraction(RATE), (1, None), "float32")

    def read(self) -> Frame | None:
        count = min(CHUNK, self._left)
        if not count:
            return None
        times = np.arange(self._at, self._at + count) / RATE
        wave = 0.5 * np.sin(2 * np.pi * self.hertz * times)
        frame = Frame(wave.astype(np.float32)[None], self._at, count, self._seq)
        self._at, self._left, self._seq = self._at + count, self._left - count, self._seq + 1
        return frame
