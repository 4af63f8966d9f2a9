"""gain: sound, louder or softer."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from streamenc import FitError, Frame, StreamInfo, Transform, options


class Gain(Transform):
    """Makes sound louder or softer, and cuts off what would leave [-1, 1].

    gain_db  By how much; 6 doubles the amplitude, -6 halves it.
    """

    def __init__(self, gain_db: str | float = 6.0) -> None:
        self.factor = 10 ** (options.number("gain_db", gain_db, -120, 120) / 20)

    def open(self, info: StreamInfo) -> StreamInfo:
        if info.kind != "audio":
            raise FitError(f"gain takes audio; got {info}")
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        louder = np.clip(frame.data * np.float32(self.factor), -1, 1)
        return [frame.with_(data=louder)]
