"""A microphone that never tires, and a sink that watches what becomes of what it gave."""

from __future__ import annotations

from collections.abc import AsyncIterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink, Source

CLIP = Path(__file__).parents[2] / "examples" / "data" / "speech.flac"
RATE = 48_000
FRAME = 960  # 20 ms


def voice(seconds: float = 8.0) -> np.ndarray[Any, Any]:
    """(1, samples) float32 of speech, at RATE."""
    import av

    with av.open(str(CLIP)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE)
        pieces = [
            part.to_ndarray()
            for frame in container.decode(audio=0)
            for part in resampler.resample(frame)
        ]
    return np.concatenate(pieces, axis=1)[:, : round(seconds * RATE) // FRAME * FRAME]


class EndlessVoice(Source):
    """`sound` over and over, 20 ms at a time as time passes, until it is stopped.

    Attributes:
        given: Frames so far.
    """

    live = True

    def __init__(self, sound: np.ndarray[Any, Any]) -> None:
        self._sound = sound
        self._stopped = False
        self.given = 0

    async def open(self) -> StreamInfo:
        return StreamInfo("audio", Fraction(1, RATE), Fraction(RATE), (1, None), "float32")

    async def frames(self) -> AsyncIterator[Frame]:
        began_ns = self.clock.now_ns()
        while not self._stopped:
            pts = self.given * FRAME
            due_ns = began_ns + (pts + FRAME) * 10**9 // RATE
            await self.clock.sleep_until_ns(due_ns)
            at = pts % self._sound.shape[1]
            yield Frame(
                self._sound[:, at : at + FRAME], pts, FRAME, seq=self.given, arrived_ns=due_ns
            )
            self.given += 1

    def stop(self) -> None:
        self._stopped = True


class Watcher(Sink):
    """Attributes: `ages_ms` of frames since somebody emptied it; `frames` and `gaps` in all."""

    def __init__(self) -> None:
        self.ages_ms: list[float] = []
        self.frames = self.gaps = 0

    async def open(self, info: StreamInfo) -> None:
        return None

    async def write(self, frame: Frame) -> None:
        self.ages_ms.append((self.clock.now_ns() - frame.arrived_ns) / 1e6)
        self.gaps += frame.discontinuity or frame.seq != self.frames
        self.frames += 1
