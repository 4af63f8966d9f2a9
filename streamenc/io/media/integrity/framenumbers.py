"""Frame numbers of H.264, which tell that a picture on which others are built is missing.

ITU-T H.264, 7.3.2.1 (sequence parameters), 7.3.3 (slice header), 7.4.3 (frame_num) and 8.2.5.2
(gaps); ISO/IEC 14496-15, 5.3.3 (avcC).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SLICE, IDR_SLICE, SEQUENCE_PARAMETERS = 1, 5, 7
# Profiles whose sequence parameters say the format of the chroma.
WITH_CHROMA = {100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135}
START_CODE = b"\x00\x00\x01"
HEADER_BYTES = 64  # more than a slice header needs up to its frame number
PARAMETERS_BYTES = 1024


class FrameNumbers:
    """Finds gaps in frame_num from packet to packet, each a picture or a field of one.

    A picture that no other is built on may be missing unnoticed: nothing else is damaged by that.
    Where a stream is allowed gaps, or does not say its parameters, none are found.

    extradata  Of the container: avcC, or parameters with start codes; None where it has none.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._bits: int | None = None  # of a frame number; None where gaps mean nothing
        self._separate_planes = False
        self._length_bytes = 0  # of each unit's length; 0 for start codes
        self._before: int | None = None  # of the picture before that others are built on
        extradata = extradata or b""
        if extradata[:1] == b"\x01" and len(extradata) > 8:
            self._length_bytes = (extradata[4] & 3) + 1
            length = int.from_bytes(extradata[6:8], "big")
            if extradata[5] & 31:
                self._learn(extradata[8 : 8 + length])
        else:
            self._follow(extradata)

    def misses(self, packet: Any) -> bool:
        """Whether a picture before that of `packet` is missing."""
        return self._follow(bytes(packet))

    def _follow(self, data: bytes) -> bool:
        for unit in self._units(data):
            kind = unit[0] & 31
            if kind == SEQUENCE_PARAMETERS:
                self._learn(unit[:PARAMETERS_BYTES])
            elif kind in (SLICE, IDR_SLICE):
                return self._slice(unit)
        return False

    def _units(self, data: bytes) -> Iterator[bytes]:
        """Up to the first slice: its beginning alone, of what stands before it all."""
        if self._length_bytes:
            at = 0
            while at + self._length_bytes < len(data):
                start = at + self._length_bytes
                at = start + int.from_bytes(data[at:start], "big")
                if start < len(data):
                    yield data[start : min(at, start + PARAMETERS_BYTES)] or b"\0"
            return
        at = data.find(START_CODE)
        while 0 <= at < len(data) - 3:
            yield data[at + 3 : at + 3 + PARAMETERS_BYTES]
            at = data.find(START_CODE, at + 3)

    def _learn(self, unit: bytes) -> None:
        try:
            read = _Bits(unit)
            profile = read.bits(24) >> 16
            read.number()  # seq_parameter_set_id
            separate = False
            if profile in WITH_CHROMA:
                chroma = read.number()
                separate = chroma == 3 and bool(read.bits(1))
                read.numbers(2)  # bit depths
                read.bits(1)  # transform bypass
                if read.bits(1):
                    _skip_scaling_lists(read, 12 if chroma == 3 else 8)
            bits = read.number() + 4
            order = read.number()
            if order == 0:
                read.number()
            elif order == 1:
                read.bits(1)
                read.numbers(2)
                read.numbers(min(read.number(), 255))
            read.number()  # max_num_ref_frames
            gaps_allowed = bool(read.bits(1))
        except EOFError:
            self._bits = None
            return
        self._separate_planes = separate
        self._bits = bits if bits <= 16 and not gaps_allowed else None

    def _slice(self, unit: bytes) -> bool:
        before = self._before
        if self._bits is None:
            self._before = None
            return False
        try:
            read = _Bits(unit[:HEADER_BYTES])
            read.numbers(3)  # first_mb_in_slice, slice_type, pic_parameter_set_id
            if self._separate_planes:
                read.bits(2)
            number = read.bits(self._bits)
        except EOFError:
            return False
        if unit[0] & 31 == IDR_SLICE:
            self._before = number
            return False
        if unit[0] >> 5 & 3:  # others are built on it
            self._before = number
        return before is not None and number not in (before, (before + 1) % 2**self._bits)


class _Bits:
    """Reads a unit behind its first byte, without the bytes that avoid start codes."""

    def __init__(self, unit: bytes) -> None:
        plain = unit[1:].replace(b"\0\0\x03", b"\0\0")
        self._value = int.from_bytes(plain, "big")
        self._left = 8 * len(plain)

    def bits(self, count: int) -> int:
        """Raises EOFError where there are not so many."""
        if count > self._left:
            raise EOFError
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)

    def number(self) -> int:
        """Exp-Golomb, unsigned."""
        zeros = 0
        while not self.bits(1):
            zeros += 1
            if zeros > 32:
                raise EOFError
        return (1 << zeros) - 1 + self.bits(zeros)

    def numbers(self, count: int) -> None:
        """Skips so many."""
        for _ in range(count):
            self.number()


def _skip_scaling_lists(read: _Bits, count: int) -> None:
    for index in range(count):
        if not read.bits(1):
            continue
        last = following = 8
        for _ in range(16 if index < 6 else 64):
            if following:
                code = read.number()
                change = (code + 1) // 2 if code % 2 else -(code // 2)
                following = (last + change) % 256
            last = following or last
