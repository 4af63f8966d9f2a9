"""What is taken of sound as it comes: which channels, and at what scale."""

from __future__ import annotations

from typing import Any

import numpy as np

from streamenc import options
from streamenc.errors import MediaError


class Intake:
    """Picks channels and scales samples, before anything is mixed.

    channel  One channel, counted from 0, or several, "0,1"; None for all.
    scale    What samples are multiplied by: a number, or "1/32768" for integers that came as they
             are in floats.

    Raises UsageError where an option is out of range.
    """

    def __init__(self, channel: str | int | None = None, scale: str | float = 1.0) -> None:
        self.channel = None if channel is None else options.indices("channel", channel)
        self.scale = np.float32(options.factor("scale", scale))

    def channels(self, there: int, name: str) -> int:
        """How many come out of `there`. Raises MediaError where one that is wanted is not there."""
        if self.channel is None:
            return there
        if max(self.channel) >= there:
            has = "one channel, channel=0" if there == 1 else f"{there} channels, 0 to {there - 1}"
            raise MediaError(f"{name!r} has no channel {max(self.channel)}; it has {has}")
        return len(self.channel)

    def take(self, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """(channels, samples), float32 -> the same of those that are wanted."""
        if self.channel is not None:
            data = np.ascontiguousarray(data[list(self.channel)])
        return data if self.scale == 1 else data * self.scale
