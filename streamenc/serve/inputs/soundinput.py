"""SoundInput: samples of any rate and channels -> a model's, with a state that can be written."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from streamenc.errors import FitError, InputError, UsageError
from streamenc.graph.timeline import Timeline
from streamenc.io.network.wire import Data
from streamenc.nodes.mixing import Mixing
from streamenc.serve.inputs.aligned import AlignedResampler
from streamenc.serve.inputs.inputbase import (
    MAX_PTS,
    Array,
    Chunk,
    Input,
    JumpError,
    check_packet,
    damaged,
    packed,
    unpacked,
)

MIN_RATE, MAX_RATE = 1000, 768_000
MAX_CHANNELS = 8
DTYPES = {"s16": "int16", "f32": "float32"}

_Count = Annotated[int, Meta(ge=0, le=MAX_PTS)]


class SoundState(Struct, array_like=True, frozen=True):
    """Of a Sound: see there. `recent` has the resampler's last samples, (channels, samples)."""

    begun: bool
    flagged: bool
    pts: Annotated[int, Meta(ge=-MAX_PTS, le=MAX_PTS)]
    taken: _Count
    given: _Count
    recent: bytes


class Sound:
    """Samples -> chunks at a model's rate and channels, counted from the pts of the first one.

    Args:
        rate, channels: Of what comes.
        to, width: What the model takes: samples a second, and channels.
        time_base: Of `pts`; one sample of what comes where it is missing.

    Attributes:
        begun: Whether something was taken in this stream.

    Raises:
        UsageError: Where the model cannot take such sound.
    """

    def __init__(
        self, rate: int, channels: int, to: Fraction, width: int, time_base: Fraction | None = None
    ) -> None:
        if not MIN_RATE <= rate <= MAX_RATE:
            raise UsageError(f"got rate {rate}; wanted {MIN_RATE} to {MAX_RATE} samples a second")
        if to.denominator != 1:
            raise UsageError(f"the model takes {to} samples a second, no whole number")
        try:
            self._mixing = Mixing(rate, channels, width, None)
        except FitError:
            raise UsageError(
                f"the model takes {width} channels, and {channels} cannot be mixed to them: send "
                f"{width}, or one"
            ) from None
        self.rate, self.channels = rate, channels
        self.time_base = time_base or Fraction(1, rate)
        self._resampler = (
            None if rate == to else AlignedResampler(rate, int(to), self._mixing.width)
        )
        self._output = Timeline(to, self.time_base)
        self.exact = self._resampler is None or self._resampler.exact
        self.why = (
            ""
            if self.exact
            else f"the resampler from {rate} to {to} Hz cannot go on to the last bit"
        )
        self.delay_seconds = 0.0
        if self._resampler is not None:
            self.delay_seconds = self._resampler.grid.delay / int(to)
        self.begun = False
        self._pts = self._taken = self._given = 0
        self._flagged = False
        self._arrived_ns = 0

    @property
    def next_pts(self) -> int:
        """Where the next samples begin, if ticks are samples."""
        return self._pts + self._taken

    def push(self, samples: Array, pts: int, cut: bool, arrived_ns: int) -> list[Chunk]:
        """(channels, samples), float32.

        Args:
            pts: Where they begin; it counts for the first ones of a stream.
            cut: Whether a new stream begins with them.
        """
        chunks = []
        if cut and self.begun:
            chunks = self.flush()
            self._flagged = True
        if not self.begun:
            self._pts, self._taken, self._given = pts, 0, 0
            self._output.anchor(pts)
            self.begun = True
        self._taken += samples.shape[1]
        self._arrived_ns = arrived_ns
        mixed = self._mixing.push(samples)
        if self._resampler is not None:
            mixed = self._resampler.push(mixed)
        return chunks + self._chunks(mixed, arrived_ns)

    def flush(self) -> list[Chunk]:
        """What the resampler holds back; the next samples begin a new stream, at any `pts`."""
        chunks: list[Chunk] = []
        if self._resampler is not None and self.begun:
            chunks = self._chunks(self._resampler.flush(), self._arrived_ns)
        self.begun = self._flagged = False
        return chunks

    def state(self) -> SoundState:
        kept = b""
        if self._resampler is not None and self.begun:
            kept = np.ascontiguousarray(self._resampler.recent).tobytes()
        return SoundState(self.begun, self._flagged, self._pts, self._taken, self._given, kept)

    def restore(self, state: SoundState) -> None:
        """Raises SnapshotError where it is none of such sound."""
        recent = self._recent(state)
        if self._resampler is not None:
            if state.begun:
                self._resampler.restore(state.taken, state.given, recent)
            else:
                self._resampler.flush()
        self.begun, self._flagged = state.begun, state.flagged
        self._pts, self._taken, self._given = state.pts, state.taken, state.given
        self._output.anchor(state.pts)

    def _recent(self, state: SoundState) -> Array:
        """(channels, samples), as the resampler kept them."""
        width, kept = self._mixing.width, 0
        if self._resampler is not None and state.begun:
            kept = min(state.taken, self._resampler.grid.memory)
            if not self._resampler.fits(state.taken, state.given):
                raise damaged(f"{state.given} samples were given of {state.taken}")
        if len(state.recent) != 4 * width * kept:
            raise damaged(f"{len(state.recent)} bytes of the last samples; {4 * width * kept} fit")
        recent = np.frombuffer(state.recent, "<f4").astype(np.float32).reshape(width, kept)
        if not np.isfinite(recent).all():
            raise damaged("samples that are not finite")
        return recent

    def _chunks(self, samples: Array, arrived_ns: int) -> list[Chunk]:
        items = samples.shape[1]
        if not items:
            return []
        if self._mixing.copies > 1:
            samples = np.repeat(samples, self._mixing.copies, axis=0)
        pts = self._output.pts(self._given)
        self._given += items
        duration = self._output.pts(self._given) - pts
        data = np.ascontiguousarray(samples, np.float32)[None]
        chunk = Chunk(data, items, pts, duration, self._flagged, 1.0, arrived_ns)
        self._flagged = False
        return [chunk]


class PcmInput(Input):
    """Formats s16 and f32: samples as they are.

    Raises UsageError where the model cannot take such sound.
    """

    def __init__(self, format: str, rate: int, channels: int, to: Fraction, width: int) -> None:
        self._sound = Sound(rate, channels, to, width)
        self.format, self.rate, self.channels = format, float(rate), channels
        self.time_base = self._sound.time_base
        self.exact, self.why = self._sound.exact, self._sound.why
        self.delay_seconds = self._sound.delay_seconds
        self._wanted = f"{DTYPES[format]} ({channels}, samples), which is {format}"

    @property
    def next_pts(self) -> int:  # type: ignore[override]
        return self._sound.next_pts

    def check(self, data: Data) -> None:
        check_packet(data, self._wanted, (DTYPES[self.format],), 2)
        got = data.data
        if got.shape[0] != self.channels:
            raise InputError(f"got {got.dtype.name} {got.shape}; wanted {self._wanted}")
        if self.format == "f32" and not np.isfinite(got).all():
            raise InputError("got samples that are not finite; wanted floats in [-1, 1]")
        if self._sound.begun and not data.discontinuity and data.pts != self.next_pts:
            raise JumpError(
                f"got sound at pts {data.pts}; the last one ended at {self.next_pts}: flag a "
                "discontinuity, or send what is missing"
            )

    def push(self, data: Data) -> list[Chunk]:
        self.check(data)
        samples: Array = data.data
        if self.format == "s16":
            samples = samples.astype(np.float32) / np.float32(32768)
        return self._sound.push(samples, data.pts, data.discontinuity, data.arrived_unix_ns)

    def flush(self) -> list[Chunk]:
        return self._sound.flush()

    def state(self) -> bytes | None:
        return packed(self._sound.state())

    def restore(self, blob: bytes) -> None:
        self._sound.restore(unpacked(blob, SoundState))
