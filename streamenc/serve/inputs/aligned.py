"""A resampler that can go on from what is written down, bit for bit equal to soxr's.

soxr gives no access to its state. But that is the last samples of input, and where its filters
stand within their blocks; and the latter depends only on how many samples came. It repeats: after
one period of input, all filters stand as before. So a new stream is first fed with silence, up to
where the filters of the old one stood, then with its last samples: what follows is equal.

From 48 to 24 kHz a period has 1,660 samples of input, one block of the only filter; where there
are several filters, it is a common multiple of their blocks. A pair of rates whose period is not
known, or does not hold on noise, goes on as well, but some samples differ in their last bits.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np
import soxr

Samples = np.ndarray[Any, Any]

QUALITY = "HQ"
# Samples of input that make a state, a second of the slower rate's: filters and blocks are shorter.
MEMORY = 3200
# Behind so much silence, all filters run evenly.
SETTLED_SECONDS = 1.0
# Of input, between which the periods of pairs that are not listed are looked for.
SEARCHED_SECONDS, SEARCHED_CPU_SECONDS = 4.0, 1.0
# In samples of input, of libsoxr 0.1.3. Each is tried on noise before it is relied on. 0: longer
# than a minute.
PERIODS = {
    8000: {16000: 830, 24000: 1468, 32000: 830, 44100: 0, 48000: 0},
    11025: {16000: 361620, 24000: 120540, 32000: 361620, 44100: 830, 48000: 0},
    12000: {16000: 2490, 24000: 830, 32000: 2460, 44100: 1640, 48000: 830},
    16000: {24000: 1468, 32000: 830, 44100: 6560, 48000: 1468},
    22050: {16000: 109368, 24000: 120540, 32000: 361620, 44100: 830, 48000: 120540},
    24000: {16000: 2202, 32000: 2490, 44100: 3280, 48000: 830},
    32000: {16000: 1660, 24000: 1108, 44100: 13120, 48000: 1468},
    44100: {16000: 218736, 24000: 6027, 32000: 109368, 48000: 120540},
    48000: {16000: 4404, 24000: 1660, 32000: 2202, 44100: 64160},
    96000: {16000: 20928, 24000: 3280, 32000: 4404, 44100: 128320, 48000: 1660},
}


@dataclass(frozen=True, slots=True)
class Grid:
    """How a pair of rates is gone on with.

    Attributes:
        unit: Samples of input that make a whole number of output.
        period: After which the filters stand as before; 0 where that is not known.
        memory: Samples of input that make the state.
        delay: Samples of output that are held back at most.
    """

    unit: int
    period: int
    memory: int
    delay: int


class AlignedResampler:
    """All output together is what `soxr.resample` makes of the whole; `state` can be written down.

    Args:
        rate, to: Samples a second that come, and that are given.
        channels: How many.

    Attributes:
        taken, given: Samples since the start of the stream.
        exact: Whether `restore` goes on bit for bit.
    """

    def __init__(self, rate: int, to: int, channels: int) -> None:
        self.rate, self.to, self.channels = rate, to, channels
        self.grid = grid(rate, to)
        self.exact = self.grid.period > 0
        self._stream = _stream(rate, to, channels)
        self._start()

    def _start(self) -> None:
        self.taken = self.given = 0
        self._recent = np.zeros((self.channels, 0), np.float32)
        self._surplus = 0  # output that a restored stream gives once more
        self._early = self._recent  # and what it gave too early

    @property
    def recent(self) -> Samples:
        """(channels, samples), the last of the input."""
        return self._recent

    def push(self, samples: Samples) -> Samples:
        """(channels, samples), float32 -> the same of what can be given now."""
        out = self._fed(samples)
        self.taken += samples.shape[1]
        joined = np.concatenate((self._recent, samples[:, -self.grid.memory :]), axis=1)
        self._recent = joined[:, -self.grid.memory :]
        self.given += out.shape[1]
        return out

    def flush(self) -> Samples:
        """What is held back still; then it starts anew."""
        out = self._fed(np.zeros((self.channels, 0), np.float32), last=True)
        self._stream.clear()
        self._start()
        return out

    def fits(self, taken: int, given: int) -> bool:
        """Whether a stream may have given so many samples of so many."""
        promised = taken * self.to / self.rate
        return promised - self.grid.delay - 2 <= given <= promised + 2

    def restore(self, taken: int, given: int, recent: Samples) -> None:
        """Goes on behind `taken` samples of input, of which these are the last ones."""
        self._stream.clear()
        self._start()
        before = taken - recent.shape[1]
        silent = self.grid_offset(before)
        # Of what comes now, so much was given before.
        self._surplus = given - (before - silent) * self.to // self.rate
        ahead = np.zeros((self.channels, silent), np.float32)
        self._early = self._fed(np.concatenate((ahead, recent), axis=1))
        self.taken, self.given, self._recent = taken, given, recent

    def grid_offset(self, position: int) -> int:
        """The samples of silence behind which all filters stand as they do at that position."""
        unit, period = self.grid.unit, self.grid.period or self.grid.unit
        settled = -(-round(self.rate * SETTLED_SECONDS) // unit) * unit
        if position < settled + period:
            return position
        return settled + (position - settled) % period

    def _fed(self, samples: Samples, last: bool = False) -> Samples:
        planar = samples.reshape(-1) if self.channels == 1 else samples.T
        got = self._stream.resample_chunk(np.ascontiguousarray(planar, np.float32), last=last)
        out = got[None] if got.ndim == 1 else np.ascontiguousarray(got.T)
        if self._surplus:
            again = min(self._surplus, out.shape[1])
            self._surplus -= again
            out = out[:, again:]
        if self._early.shape[1]:
            out, self._early = np.concatenate((self._early, out), axis=1), out[:, :0]
        return out


def _stream(rate: int, to: int, channels: int) -> Any:
    return soxr.ResampleStream(rate, to, channels, dtype="float32", quality=QUALITY)


@functools.cache
def grid(rate: int, to: int) -> Grid:
    """Found out once per process and pair of rates; takes up to about half a second."""
    unit = rate // gcd(rate, to)
    memory = -(-MEMORY * rate // min(rate, to))
    return Grid(unit, _period(rate, to, unit, memory), memory, _delay(rate, to))


def _delay(rate: int, to: int) -> int:
    """Found with pieces of 1 ms, of a second of silence."""
    stream, taken, given, most = _stream(rate, to, 1), 0, 0, 0
    silence = np.zeros(max(1, rate // 1000), np.float32)
    while taken < rate:
        taken += len(silence)
        given += len(stream.resample_chunk(silence))
        most = max(most, -(-taken * to // rate) - given)
    return most


def _period(rate: int, to: int, unit: int, memory: int) -> int:
    """0 where none is found, or holds."""
    listed = PERIODS.get(rate, {}).get(to)
    if listed == 0:
        return 0
    noise = np.random.default_rng(1).standard_normal(3 * memory).astype(np.float32)
    settled = -(-round(rate * SETTLED_SECONDS) // unit) * unit
    wanted = _behind(rate, to, settled, noise)
    candidates = range(unit, round(SEARCHED_SECONDS * rate), unit) if listed is None else (listed,)
    begun = time.perf_counter()
    for period in candidates:
        got = _behind(rate, to, settled + period, noise)
        if len(got) == len(wanted) and np.array_equal(got, wanted):
            return period
        if time.perf_counter() - begun > SEARCHED_CPU_SECONDS:
            break
    return 0


def _behind(rate: int, to: int, silent: int, noise: Samples) -> Samples:
    """The output of noise that comes behind so much silence, without that of the silence."""
    fed = np.concatenate((np.zeros(silent, np.float32), noise))
    return np.asarray(_stream(rate, to, 1).resample_chunk(fed)[silent * to // rate :])
