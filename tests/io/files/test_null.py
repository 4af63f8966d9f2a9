from __future__ import annotations

from fractions import Fraction

import anyio
import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.null import NullSink


def test_it_counts() -> None:
    info = StreamInfo("codes", Fraction(1, 75), Fraction(75), (2, None), "uint16", "m", 1024)
    sink = NullSink()

    async def main() -> None:
        await sink.open(info)
        for count in (3, 0, 4):
            await sink.write(Frame(np.zeros((2, count), np.uint16), 0, count, 0))
        await sink.aclose()
        await sink.aclose()

    anyio.run(main)
    assert (sink.frames, sink.items) == (3, 7)
