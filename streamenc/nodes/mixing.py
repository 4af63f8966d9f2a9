"""Sound on its way into a model: bounded, its channels picked and mixed, and what that met said."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from streamenc.errors import FitError

log = logging.getLogger(__name__)

Samples = np.ndarray[Any, Any]

# No sound is louder. Lossy decoders and float mixes overshoot full scale by a few dB, to 4 (12 dB)
# in the loudest files; integers in floats begin at 128. What is clipped here leaves no trace in a
# model beyond its own memory, where 1e30 is infinite in the first spectrum.
LIMIT = 16.0
# Peaks up to here, and what integers of that size want to be multiplied by.
SCALES = ((2**15, "1/32768"), (2**23, "1/8388608"), (2**31, "1/2147483648"))
# A mix is said to have cancelled its channels where it is 20 dB quieter than they are, for about a
# second that is not silence (-70 dB). Unlike sounds in up to 64 channels are not.
WINDOW_SECONDS = 1.0
CANCELLED_POWER, SILENT_POWER = 0.01, 1e-7

# 5.1 and 7.1 in the order of WAVE (FL FR FC LFE BL BR, SL SR) to stereo, by ITU-R BS.775-3, without
# the low-frequency channel; scaled so that nothing can overshoot, as FFmpeg does for integers.
_HALF_POWER = 0.5**0.5
_FRONT = [[1, 0], [0, 1], [_HALF_POWER, _HALF_POWER], [0, 0]]
_PAIR = [[_HALF_POWER, 0], [0, _HALF_POWER]]
DOWNMIX = {6: ("5.1", _FRONT + _PAIR), 8: ("7.1", _FRONT + _PAIR + _PAIR)}


class Mixing:
    """(channels, samples), float32 -> the same with the wanted channels.

    Samples beyond +-LIMIT are clipped to it and counted. What is not finite is left, for the model
    to refuse. One channel is the mean of all; two of 5.1 and 7.1 are mixed by ITU-R BS.775.

    clipped  Samples that were clipped so far.
    remarks  Sentences about what was met and done, for people.

    Raises FitError where the channels do not fit.
    """

    def __init__(
        self, rate: float, there: int, channels: int | None, channel: tuple[int, ...] | None
    ) -> None:
        self.remarks: list[str] = []
        self.clipped = 0
        self._seen = 0
        self._largest = 0.0
        self._picked = None if channel is None else list(channel)
        if channel is not None and max(channel) >= there:
            raise FitError(
                f"there is no channel {max(channel)}: they are counted from 0, and the sound has "
                f"{there}"
            )
        self._there = there if channel is None else len(channel)
        self.channels = channels or self._there
        self._weights: Samples | None = None
        self._mixed = ""
        if self.channels == 2 and self._there in DOWNMIX:
            self._mixed, weights = DOWNMIX[self._there]
            table = np.array(weights, np.float32).T
            self._weights = table / table.sum(axis=1, keepdims=True)
        elif self.channels != self._there and 1 not in (self.channels, self._there):
            raise FitError(
                f"cannot mix {self._there} channels to {self.channels}: only to 1, from 1 to 2, "
                "and 5.1 or 7.1 to 2; pick some: --channel 0,1, or ?channel=0,1 at the source, or "
                "mix to one with channels=1"
            )
        self.copies = self.channels if self._there == 1 else 1
        self._mean = self.channels == 1 < self._there
        self._window = round(rate * WINDOW_SECONDS)
        self._count = 0  # samples of this window, and their power before and after
        self._before = self._after = 0.0
        self._windows = self._cancelled = 0
        self._tell()

    @property
    def width(self) -> int:
        """Channels that come out of `push`, before they are copied."""
        return self.channels // self.copies

    def push(self, data: Samples) -> Samples:
        """Not yet copied; the same array where nothing is to be done."""
        if self._picked is not None:
            data = data[self._picked]
        data = self._bounded(data)
        if self._weights is not None:
            stereo: Samples = self._weights @ data
            return stereo
        if not self._mean:
            return data
        mixed: Samples = data.mean(axis=0, keepdims=True, dtype=np.float32)
        self._compare(data, mixed)
        return mixed

    def flush(self) -> None:
        """The last, shorter second counts as well."""
        if 5 * self._count >= self._window:
            self._judge()
        self._tell()

    def _tell(self) -> None:
        found = []
        if self.clipped:
            found.append(self._clipped_remark())
        if self._cancelled:
            found.append(
                f"the {self._there} channels cancel each other out when they are mixed to one "
                f"(opposite phase): for {self._cancelled} of {self._windows} s the mix is more "
                "than 20 dB quieter than they are; take one of them: --channel 0, or ?channel=0 at "
                "the source"
            )
        if self._mixed:
            found.append(
                f"{self._there} channels were taken for {self._mixed} and mixed to stereo by "
                "ITU-R BS.775; --channel 0,1, or ?channel=0,1 at the source, takes two as they are"
            )
        self.remarks[:] = found

    def _bounded(self, data: Samples) -> Samples:
        if not data.size:
            return data
        self._seen += data.size
        peak = max(float(data.max()), -float(data.min()))
        if not peak > LIMIT or not np.isfinite(data).all():
            return data
        if not self.clipped:
            log.warning("samples up to %.3g lie beyond +-%g, and are clipped to it", peak, LIMIT)
        self.clipped += int(np.count_nonzero(np.abs(data) > LIMIT))
        self._largest = max(self._largest, peak)
        self._tell()
        return np.clip(data, -LIMIT, LIMIT)

    def _clipped_remark(self) -> str:
        scale = next((scale for top, scale in SCALES if self._largest <= 1.01 * top), "")
        cure = (
            f"if these are integers' values in floats, say ?scale={scale} at the source"
            if scale
            else "no sound is so loud: see what wrote them"
        )
        return (
            f"{self.clipped} of {self._seen} samples lay beyond +-{LIMIT:g} (24 dB over full "
            f"scale), up to {self._largest:.3g}, and were clipped to it; {cure}"
        )

    def _compare(self, data: Samples, mixed: Samples) -> None:
        flat, mono = data.reshape(-1), mixed.reshape(-1)
        self._before += float(np.dot(flat, flat)) / len(data)
        self._after += float(np.dot(mono, mono))
        self._count += len(mono)
        if self._count >= self._window:
            self._judge()

    def _judge(self) -> None:
        self._windows += 1
        loud = self._before > SILENT_POWER * self._count
        if loud and self._after < CANCELLED_POWER * self._before:
            self._cancelled += 1
            self._tell()
        self._count, self._before, self._after = 0, 0.0, 0.0
