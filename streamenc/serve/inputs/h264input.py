"""H264Input: one access unit a message -> images for a model."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Any

import av
import av.error
from msgspec import Meta, Struct

from streamenc.errors import InputError
from streamenc.io.media.pictures.pixels import Form, RgbPixels
from streamenc.io.network.wire import Data
from streamenc.serve.inputs.dating import Dating, DatingState
from streamenc.serve.inputs.imageinput import Fitting, FittingState
from streamenc.serve.inputs.inputbase import Chunk, Input, check_packet, damaged, packed, unpacked
from streamenc.serve.inputs.replay import TOO_LONG, Kept
from streamenc.spec import StreamSpec

START = b"\0\0\1"
IDR, SPS, PPS = 5, 7, 8
# Access units that decoders keep back at most, to bring images into the order of their times.
MAX_HELD = 64
# As in io.media: more oblong pixels than these are a wrong number.
MAX_OBLONG = Fraction(4)


class H264State(Struct, array_like=True, frozen=True):
    """Of an H264Input.

    Attributes:
        units: Since the last key frame, with its parameter sets, `whole` or none; `parameters` has
            the newest.
        held: (duration, flagged, arrived_ns) of units whose images have not come, by number.
        first, number: How many units came before these, and in all.
    """

    units: list[bytes]
    whole: bool
    parameters: bytes
    first: Annotated[int, Meta(ge=0)]
    number: Annotated[int, Meta(ge=0)]
    held: Annotated[dict[int, tuple[int, int, bool, int]], Meta(max_length=MAX_HELD)]
    lost: bool
    dating: DatingState
    fitting: FittingState


class H264Input(Input):
    """Format h264: images in the order in which they are shown.

    Decoding begins with a key frame that carries its parameter sets (SPS and PPS), in Annex B. What
    cannot be decoded is left out, and the next image is flagged.

    Args:
        rate: Images a second, nominally.

    Attributes:
        lost: Images that were left out.

    Raises:
        UsageError: Where the model cannot take that size.
    """

    format = "h264"
    slow = True

    def __init__(self, rate: Fraction, spec: StreamSpec, size: str, max_pixels: int) -> None:
        self.rate = float(rate)
        self.lost = 0
        self._max_pixels = max_pixels
        self._fitting, self._dating = Fitting(spec, size, max_pixels), Dating(rate)
        self._kept = Kept()
        self._start()

    def _start(self) -> None:
        self._decoder = self._new_decoder()
        self._kept.clear()
        self._parameters = b""  # the newest SPS and PPS
        self._first = self._number = 0
        self._held: dict[int, tuple[int, int, bool, int]] = {}
        self._broken = False  # something before the next image is missing

    @property
    def next_pts(self) -> int:  # type: ignore[override]
        return self._dating.next_pts

    @property
    def exact(self) -> bool:  # type: ignore[override]
        return self._kept.whole

    @property
    def why(self) -> str:  # type: ignore[override]
        return "" if self._kept.whole else TOO_LONG

    def check(self, data: Data) -> None:
        check_packet(data, "uint8 (1, bytes) of an access unit", ("uint8",), 2)
        head = data.data[0, :4].tobytes() if data.data.shape[0] == 1 else b""
        if not head.startswith((START, b"\0" + START)):
            raise InputError(
                f"got uint8 {data.data.shape} that begins with {head!r}; wanted (1, bytes) of an "
                "access unit in Annex B, which begins with 00 00 01"
            )

    def push(self, data: Data) -> list[Chunk]:
        self.check(data)
        unit = data.data.tobytes()
        kinds = units_of(unit)
        chunks: list[Chunk] = []
        if data.discontinuity and self._dating.begun:
            chunks = self._ended()
        if SPS not in {kind for kind, _ in kinds} and not self._parameters:
            raise InputError(
                "got an access unit without parameter sets (SPS, PPS) at the beginning: begin with "
                "a key frame, and have the encoder repeat them there"
            )
        unit, before = self._renewed(unit, kinds)
        chunks += self._chunks(before)
        self._kept.add(unit)
        pts, duration, flagged = self._dating.place(data, 1)
        self._held[self._number] = (pts, duration, flagged, data.arrived_unix_ns)
        if len(self._held) > MAX_HELD:
            self._lose(min(self._held))
        chunks += self._chunks(self._decoded(unit))
        return chunks

    def flush(self) -> list[Chunk]:
        chunks = self._ended()
        self._dating.end()
        return chunks

    def _ended(self) -> list[Chunk]:
        """What is held back still; the decoder is new."""
        chunks = self._chunks(self._decoded(None))
        self._start()
        return chunks

    def state(self) -> bytes | None:
        whole = self._kept.whole
        return packed(
            H264State(
                self._kept.pieces, whole, self._parameters, self._first, self._number,
                self._held if whole else {}, self._broken or not whole, self._dating.state(),
                self._fitting.state(),
            )
        )  # fmt: skip

    def restore(self, blob: bytes) -> None:
        state = unpacked(blob, H264State)
        if state.whole and state.number - state.first != len(state.units):
            raise damaged(f"{len(state.units)} access units")
        self._fitting.restore(state.fitting)
        self._dating.restore(state.dating)
        self._start()
        self._number = state.first
        for unit in state.units:
            self._decoded(unit)
        self._kept.restore(state.units, state.whole)
        self._number = state.number
        self._parameters, self._first = state.parameters, state.first
        self._held, self._broken = state.held, state.lost

    def _renewed(self, unit: bytes, kinds: list[tuple[int, bytes]]) -> tuple[bytes, list[Any]]:
        """The unit as it is decoded and kept, and the images that are awaited from before it.

        A key frame is decoded by a new decoder: so even what a damaged one is made of depends on
        nothing that came before.
        """
        sets = b"".join(nal for kind, nal in kinds if kind in (SPS, PPS))
        if not any(kind == IDR for kind, _ in kinds):
            self._parameters = sets or self._parameters
            return unit, []
        before = self._decoded(None)
        self._decoder = self._new_decoder()
        self._kept.clear()
        self._first = self._number
        if sets:
            self._parameters = sets
            return unit, before
        return self._parameters + unit, before

    def _new_decoder(self) -> Any:
        decoder: Any = av.CodecContext.create("h264", "r")
        decoder.thread_count = 1
        decoder.options = {"max_pixels": str(self._max_pixels), "err_detect": "explode", "ec": "0"}
        return decoder

    def _decoded(self, unit: bytes | None) -> list[Any]:
        """Images of PyAV, whose pts are numbers of units; None for all that are held back."""
        packet: Any = None
        if unit is not None:
            packet = av.Packet(unit)
            packet.pts = self._number
            self._number += 1
        try:
            return list(self._decoder.decode(packet))
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            self._lose(self._number - 1)
            return []

    def _lose(self, number: int) -> None:
        self.lost += 1
        self._broken = True
        self._held.pop(number, None)

    def _chunks(self, images: list[Any]) -> list[Chunk]:
        chunks = []
        for image in images:
            placed = self._held.pop(image.pts, None)
            if image.is_corrupt or placed is None:
                self._lose(image.pts)
                continue
            pts, duration, flagged, arrived_ns = placed
            self._fitting.check(image.height, image.width)
            form = self._form(image)
            fitted, changed = self._fitting.push(RgbPixels(form)(image, form))
            flagged = flagged or changed or self._broken
            self._broken = False
            chunks.append(Chunk(fitted[None], 1, pts, duration, flagged, 1.0, arrived_ns))
        return chunks

    def _form(self, image: Any) -> Form:
        aspect = Fraction(self._decoder.sample_aspect_ratio or 1)
        if not 1 / MAX_OBLONG <= aspect <= MAX_OBLONG:
            aspect = Fraction(1)
        return Form(image.width, image.height, pixel_aspect=aspect)


def units_of(unit: bytes) -> list[tuple[int, bytes]]:
    """(kind, bytes with their start code) of each NAL unit in Annex B."""
    starts, at = [], unit.find(START)
    while at >= 0:
        starts.append(at)
        at = unit.find(START, at + 3)
    ends = [*starts[1:], len(unit)]
    return [(unit[a + 3] & 31, unit[a:b]) for a, b in zip(starts, ends, strict=True) if a + 3 < b]
