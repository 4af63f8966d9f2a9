"""MediaInput: the bytes of any file or container, cut anywhere -> sound or images for a model."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from fractions import Fraction
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from streamenc.errors import InputError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.network.wire import Data
from streamenc.serve.inputs.containerdecoder import ContainerDecoder
from streamenc.serve.inputs.imageinput import Fitting, FittingState
from streamenc.serve.inputs.inputbase import (
    MAX_PTS,
    TICK,
    Chunk,
    Input,
    check_packet,
    damaged,
    packed,
    unpacked,
)
from streamenc.serve.inputs.replay import TOO_LONG, Kept
from streamenc.serve.inputs.soundinput import MAX_CHANNELS, Sound, SoundState
from streamenc.spec import StreamSpec

# Of all that is decoded again after a restart, samples or pixels.
MAX_AGAIN = {"audio": 2**28, "video": 2**33}
# Frames of sound that follow on from each other are one chunk, up to this.
JOINED_SECONDS = 1.0
USUAL_RATE = 48_000

_Count = Annotated[int, Meta(ge=0, le=MAX_PTS)]
_Pts = Annotated[int, Meta(ge=-MAX_PTS, le=MAX_PTS)]


class MediaState(Struct, array_like=True, frozen=True):
    """Of a MediaInput.

    Attributes:
        pieces: Of the file since its beginning.
        given: Items that were decoded of it.
        offset: Ticks that its times are moved by.
        end: Where the last chunk ended.
        opened: Whether a file has begun; `begun` whether a chunk was given since the last flush.
        cut: The next chunk begins a new stream.
        form: The sample rate and channels of its sound, (0, 0) before they are known.
    """

    pieces: list[bytes]
    given: _Count
    offset: _Pts
    end: _Pts
    opened: bool
    begun: bool
    cut: bool
    form: tuple[_Count, _Count]
    sound: SoundState | None
    fitting: FittingState | None


class MediaInput(Input):
    """Format media: what FFmpeg decodes of the bytes, as soon as it does.

    Times are the container's, moved by the pts of the packet with which it begins; where that has
    none, and a stream went before, it follows on from that. A flag, and what comes behind a flush,
    begins another file.
    """

    format = "media"
    slow = True
    kind: str

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._decoder: ContainerDecoder | None = None
        self._kept = Kept()
        self._given = self._decoded_in_all = 0
        self._skip = 0  # items that are decoded once more
        self._offset = self._end = 0
        self._begun = self._cut = False

    @property
    def next_pts(self) -> int:  # type: ignore[override]
        return self._end

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self._kept.whole

    @property
    def why(self) -> str:  # type: ignore[override]
        return "" if self._kept.whole else TOO_LONG

    def check(self, data: Data) -> None:
        check_packet(data, "uint8 (1, bytes) of a file", ("uint8",), 2)
        if data.data.shape[0] != 1:
            raise InputError(f"got uint8 {data.data.shape}; wanted (1, bytes) of a file")

    def push(self, data: Data) -> list[Chunk]:
        self.check(data)
        chunks: list[Chunk] = []
        if data.discontinuity and self._decoder is not None:
            chunks = self._ended()
            self._cut = self._begun
        if self._decoder is None:
            self._offset = self._end if data.pts == 0 == data.duration else data.pts
            self._decoder = ContainerDecoder(self.kind, self._max_pixels)
        piece = data.data.tobytes()
        self._kept.add(piece)
        return chunks + self._dated(self._fed(self._decoder, piece), data.arrived_unix_ns)

    def flush(self) -> list[Chunk]:
        chunks = self._ended()
        self._begun = self._cut = False
        return chunks

    def close(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    def state(self) -> bytes | None:
        if not self._kept.whole:
            return None
        return packed(
            MediaState(
                self._kept.pieces, self._given, self._offset, self._end,
                self._decoder is not None, self._begun, self._cut, *self._form(),
            )
        )  # fmt: skip

    def restore(self, blob: bytes) -> None:
        state = unpacked(blob, MediaState)
        self.close()
        self._new_file()
        self._restore_form(state)
        self._kept.restore(state.pieces)
        self._skip, self._given = state.given, state.given
        self._offset, self._end = state.offset, state.end
        self._begun, self._cut = state.begun, state.cut
        if not state.opened:
            return
        self._decoder = ContainerDecoder(self.kind, self._max_pixels)
        try:
            for piece in state.pieces:
                if self._fed(self._decoder, piece):
                    raise damaged("more is decoded than was before")
                if not self._kept.whole:
                    raise damaged("more is decoded than is decoded again")
        except InputError as error:
            self.close()
            raise damaged(str(error)) from None

    def _ended(self) -> list[Chunk]:
        """What is left of a file; the next bytes begin another one."""
        if self._decoder is None:
            return []
        try:
            frames = self._left(self._decoder.end())
            chunks = self._dated(frames, frames[-1].arrived_ns if frames else 0)
        finally:
            self._decoder = None
            self._new_file()
        return chunks + self._rest()

    def _new_file(self) -> None:
        self._kept.clear()
        self._given = self._decoded_in_all = self._skip = 0

    def _fed(self, decoder: ContainerDecoder, piece: bytes) -> list[Frame]:
        """Frames that were not given before."""
        frames = decoder.feed(piece)
        self._decoded_in_all += sum(frame.data.size for frame in frames)
        if self._decoded_in_all > MAX_AGAIN[self.kind]:
            self._kept.give_up()
        return self._left(frames)

    def _left(self, frames: list[Frame]) -> list[Frame]:
        """Those that were not given before the input was restored."""
        left = []
        for frame in frames:
            items = frame.data.shape[1]
            if self._skip >= items:
                self._skip -= items
            elif self._skip:
                skip, self._skip = self._skip, 0
                left.append(frame.with_(data=frame.data[:, skip:], pts=frame.pts + skip))
            else:
                left.append(frame)
        return left

    def _dated(self, frames: list[Frame], arrived_ns: int) -> list[Chunk]:
        self._given += sum(frame.data.shape[1] for frame in frames)
        return self._flagged(self._chunks(frames, arrived_ns))

    def _flagged(self, chunks: list[Chunk]) -> list[Chunk]:
        if chunks:
            if self._cut:
                chunks[0] = replace(chunks[0], discontinuity=True)
            self._cut, self._begun = False, True
            self._end = chunks[-1].pts + chunks[-1].duration
        return chunks

    @abstractmethod
    def _chunks(self, frames: list[Frame], arrived_ns: int) -> list[Chunk]:
        """Frames as the model takes them. Raises InputError."""

    def _rest(self) -> list[Chunk]:
        """What else is held back, at the end of a file."""
        return []

    @abstractmethod
    def _form(self) -> tuple[tuple[int, int], SoundState | None, FittingState | None]:
        """The last three fields of the state."""

    @abstractmethod
    def _restore_form(self, state: MediaState) -> None:
        """Raises SnapshotError."""


class MediaSound(MediaInput):
    """The sound of a file.

    Args:
        to, width: The model's rate, which is what times count in, and channels.

    Raises:
        UsageError: Where the model cannot take sound of some rate.
    """

    kind = "audio"

    def __init__(self, to: Fraction, width: int, max_pixels: int) -> None:
        super().__init__(max_pixels)
        self._to, self._width = to, width
        self.rate, self.channels, self.time_base = float(to), width, 1 / to
        self.delay_seconds = Sound(USUAL_RATE, width, to, width).delay_seconds
        self._sound: Sound | None = None

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return super().exact and (self._sound is None or self._sound.exact)

    @property
    def why(self) -> str:  # type: ignore[override]
        return super().why or (self._sound.why if self._sound is not None else "")

    def _chunks(self, frames: list[Frame], arrived_ns: int) -> list[Chunk]:
        if not frames:
            return []
        if self._sound is None:
            assert self._decoder is not None and self._decoder.info is not None
            info = self._decoder.info
            self._sound = self._made(int(info.rate), info.shape[0] or 0)
        chunks, group, held = [], [frames[0]], 0
        for frame in [*frames[1:], None]:
            held += group[-1].data.shape[1]
            whole = held >= self._sound.rate * JOINED_SECONDS
            if frame is not None and not frame.discontinuity and not whole:
                group.append(frame)
                continue
            samples = np.concatenate([part.data for part in group], axis=1)
            pts = self._offset + round(group[0].pts * self._to / self._sound.rate)
            chunks += self._sound.push(samples, pts, group[0].discontinuity, arrived_ns)
            group, held = [] if frame is None else [frame], 0
        return chunks

    def _rest(self) -> list[Chunk]:
        sound, self._sound = self._sound, None
        return [] if sound is None else self._flagged(sound.flush())

    def _made(self, rate: int, channels: int) -> Sound:
        """Raises InputError."""
        if not 1 <= channels <= MAX_CHANNELS:
            raise InputError(f"got sound of {channels} channels; wanted 1 to {MAX_CHANNELS}")
        try:
            return Sound(rate, channels, self._to, self._width, self.time_base)
        except UsageError as error:
            raise InputError(str(error)) from None

    def _form(self) -> tuple[tuple[int, int], SoundState | None, FittingState | None]:
        if self._sound is None:
            return (0, 0), None, None
        return (self._sound.rate, self._sound.channels), self._sound.state(), None

    def _restore_form(self, state: MediaState) -> None:
        self._sound = None
        if state.sound is None:
            return
        try:
            self._sound = self._made(*state.form)
        except InputError as error:
            raise damaged(str(error)) from None
        self._sound.restore(state.sound)


class MediaImages(MediaInput):
    """The images of a file.

    Args:
        rate: Images a second, nominally.

    Raises:
        UsageError: Where the model cannot take that size.
    """

    kind = "video"

    def __init__(self, rate: Fraction, spec: StreamSpec, size: str, max_pixels: int) -> None:
        super().__init__(max_pixels)
        self.rate = float(rate)
        self._fitting = Fitting(spec, size, max_pixels)
        self._tick = TICK

    def _chunks(self, frames: list[Frame], arrived_ns: int) -> list[Chunk]:
        chunks = []
        for frame in frames:
            if self._decoder is not None and self._decoder.info is not None:
                self._tick = self._decoder.info.time_base
            fitted, changed = self._fitting.push(frame.data)
            begin = self._offset + round(frame.pts * self._tick / TICK)
            end = self._offset + round((frame.pts + frame.duration) * self._tick / TICK)
            flagged = frame.discontinuity or changed
            chunks.append(Chunk(fitted[None], 1, begin, end - begin, flagged, 1.0, arrived_ns))
        return chunks

    def _form(self) -> tuple[tuple[int, int], SoundState | None, FittingState | None]:
        return (0, 0), None, self._fitting.state()

    def _restore_form(self, state: MediaState) -> None:
        if state.fitting is None:
            raise damaged("images without their size")
        self._fitting.restore(state.fitting)
