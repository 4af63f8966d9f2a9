"""Sound as a speech detector takes it: one channel at 16 or 8 kHz, by a filter in explicit state.

Only a detector hears it. What models take is resampled by soxr, whose filters are longer, and whose
state cannot be written down.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from streamenc.errors import SnapshotError, UsageError
from streamenc.nodes.speech.kept import Kept, from_bytes

Samples = np.ndarray[Any, Any]

# Zero crossings of the filter on each side, the part of the band that passes, and the attenuation.
CROSSINGS, PASSBAND, KAISER_BETA = 16, 0.95, 8.0
MAX_PHASES = 512  # positions between two samples; others are rounded to these


class _Kept(Kept):
    """The state: what came, what went out, and the samples that are heard again."""

    taken: int
    given: int
    tail: bytes


class Narrowband:
    """Resamples one channel, by a windowed sinc of linear phase, aligned with the input.

    Output comes in blocks of 32 ms counted from the stream's start, each by the same operations
    however the input is cut, so it is the same bit for bit. A block is held back until all that its
    last sample looks ahead to is there: 0.75 ms at 48 kHz.

    rate  Of the input, samples a second, from 1000 to 768,000.
    out   Of the output: 16,000, or 8,000 where the input has fewer.

    Raises UsageError where `rate` is out of range.
    """

    _heard: Samples

    def __init__(self, rate: Fraction | int) -> None:
        if not 1000 <= rate <= 768_000:
            raise UsageError(f"got rate={rate}; speech is detected from 1000 to 768000 samples/s")
        self.rate = Fraction(rate)
        self.out = 16_000 if rate >= 16_000 else 8000
        step = self.rate / self.out  # input samples for each of the output
        self._num: int = step.numerator
        self._den: int = step.denominator
        self._block = self.out * 32 // 1000
        self._filters = _filters(self._num, self._den)
        self._taps: int = self._filters.shape[1]
        self._before: int = self._taps // 2 - 1  # samples heard before an output's own
        self._reset()

    def push(self, samples: Samples) -> Samples:
        """(samples,) float32 -> (samples,) float32, none or more blocks."""
        self._taken += len(samples)
        self._heard = np.concatenate((self._heard, samples))
        blocks = []
        while self.needed(self._given + self._block) <= self._taken:
            blocks.append(self._resampled())
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def flush(self) -> Samples:
        """The stream ends: the rest of round(samples * out / rate). Another stream begins."""
        wanted = (2 * self._taken * self._den + self._num) // (2 * self._num) - self._given
        blocks = [np.zeros(0, np.float32)]
        while sum(map(len, blocks)) < wanted:
            missing = self.needed(self._given + self._block) - self._taken
            self._heard = np.pad(self._heard, (0, max(0, missing)))
            self._taken += max(0, missing)
            blocks.append(self._resampled())
        self._reset()
        return np.concatenate(blocks)[:wanted]

    def needed(self, given: int) -> int:
        """Samples that must have come for so many to be given."""
        return self._first(given - 1) + self._taps

    def state(self) -> bytes:
        """All that it remembers of the stream, for `restore` of one of the same rate."""
        return _Kept(self._taken, self._given, self._heard.astype("<f4").tobytes()).to_bytes()

    def restore(self, state: bytes) -> None:
        """Raises SnapshotError where it is no state of this rate; then nothing has changed."""
        kept = from_bytes(state, _Kept, "a resampler")
        wanted = kept.taken - self._first(kept.given)
        whole = 0 <= kept.given < 2**62 and not kept.given % self._block
        short = wanted <= self._taps + self._block * self._num // self._den + 2
        if not whole or not 0 <= wanted or not short or len(kept.tail) != 4 * wanted:
            raise SnapshotError(
                f"got a resampler's state of {len(kept.tail)} bytes, {kept.taken} samples in and "
                f"{kept.given} out; that does not fit {float(self.rate):g} samples/s"
            )
        self._taken, self._given = kept.taken, kept.given
        self._heard = np.frombuffer(kept.tail, "<f4").astype(np.float32)

    def _reset(self) -> None:
        self._taken = self._given = 0
        # Before the stream there was silence. What is kept begins at sample `_first(_given)`.
        self._heard = np.zeros(self._before, np.float32)

    def _first(self, given: int) -> int:
        """The first input sample that the output's sample `given` hears."""
        return given * self._num // self._den - self._before

    def _resampled(self) -> Samples:
        """The next block."""
        first = self._first(self._given)
        exact = self._given * self._num % self._den + np.arange(self._block) * self._num
        starts, phases = exact // self._den, exact % self._den * len(self._filters) // self._den
        windows = np.lib.stride_tricks.sliding_window_view(self._heard, self._taps)
        block: Samples = (windows[starts] * self._filters[phases]).sum(axis=1, dtype=np.float32)
        self._given += self._block
        self._heard = self._heard[self._first(self._given) - first :]
        return block


@lru_cache(maxsize=32)
def _filters(num: int, den: int) -> Samples:
    """(phases, taps) float32: for each position of an output between two samples of the input.

    Of `num / den` samples of input for each of the output.
    """
    if num == den:
        return np.array([[1, 0]], np.float32)
    cutoff = min(1.0, den / num) * PASSBAND  # of the input's half rate
    half = int(np.ceil(CROSSINGS / cutoff))
    phases = min(den, MAX_PHASES)
    shift = 0.0 if phases == den else 0.5  # the middle of what is rounded to it
    positions = (np.arange(phases) + shift) / phases
    at = np.arange(2 * half) - (half - 1) - positions[:, None]
    window = np.i0(KAISER_BETA * np.sqrt(np.clip(1 - (at / half) ** 2, 0, None)))
    filters = np.sinc(at * cutoff) * window
    made: Samples = (filters / filters.sum(axis=1, keepdims=True)).astype(np.float32)
    return made
