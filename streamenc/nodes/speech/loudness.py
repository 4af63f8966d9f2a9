"""A detector that needs nothing: sound that rises above the noise of its surroundings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from streamenc.errors import SnapshotError

Samples = np.ndarray[Any, Any]

FLOOR_SECONDS = 3.0  # in so long, speech has a pause, and a noise is known as one
FIRST_FLOOR_DB = -45.0  # of full scale, at most: a stream may begin in the middle of a word
SILENT_DB = -60.0  # what is below is no speech, however quiet the rest
# Above the floor: from here on it may be speech, and from there on it is.
DOUBTFUL_DB, CERTAIN_DB = 3.0, 15.0


class Loudness:
    """How far each window of 32 ms is louder than the quietest of the last 3 seconds, as a number
    from 0 (3 dB above it, or less) to 1 (15 dB, or more); so 0.5 is 9 dB.

    The floor is a minimum over time, as in R. Martin, "Noise power spectral density estimation
    based on optimal smoothing and minimum statistics" (2001), of all frequencies together: a noise
    that sets in is taken for speech until it has lasted for 3 s, and so are music and a slammed
    door. A single loud window is no speech; two in a row are.

    rate  16,000 or 8,000.
    """

    name = "energy"
    least_windows = 2

    def __init__(self, rate: int) -> None:
        self.window = rate * 32 // 1000
        self._windows = round(FLOOR_SECONDS * rate / self.window)
        self.reset()

    def reset(self) -> None:
        """A new stream begins."""
        self._levels: list[float] = []  # dB of full scale, the newest last

    def judge(self, window: Samples) -> float:
        """window  (samples,) float32, exactly `window` of them."""
        centred = window.astype(np.float64) - window.mean(dtype=np.float64)
        power = float(np.square(centred).mean())
        level = max(SILENT_DB - 40, 10 * math.log10(power + 1e-12))
        floor = min(FIRST_FLOOR_DB, level) if not self._levels else min(self._levels)
        if not self._levels:
            self._levels.append(floor)
        self._levels.append(level)
        del self._levels[: -self._windows]
        if level < SILENT_DB:
            return 0.0
        above = level - max(floor, SILENT_DB)
        return min(1.0, max(0.0, (above - DOUBTFUL_DB) / (CERTAIN_DB - DOUBTFUL_DB)))

    def state(self) -> bytes:
        return np.array(self._levels, "<f8").tobytes()

    def restore(self, state: bytes) -> None:
        """Raises SnapshotError where `state` is none."""
        if len(state) % 8 or len(state) > 8 * self._windows:
            raise SnapshotError(f"got {len(state)} bytes of the levels of {self._windows} windows")
        self._levels = np.frombuffer(state, "<f8").tolist()
