"""How long a file is said to be by its own header, and what is missing of that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

# A writer that cannot go back leaves such a size behind, or 0: sizes from here on mean nothing.
MIN_PLACEHOLDER = 2_000_000_000
TS_PACKET = 188
MAX_CHUNKS = 100_000
OGG_PAGE_BYTES = 65_307
# Flags of a Xing header, and what tags behind the sound take that were counted and then removed.
XING_FRAMES, XING_BYTES = 1, 2
XING_SLACK = 512
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"


def shortfall(path: Path) -> str:
    """Why a file is known not to be whole, in words; "" where it is, as far as its header says.

    Only the outermost structure is read: of WAV, AIFF, AU, CAF, W64, MP3, AVI, Matroska, MP4, FLV,
    Ogg, GIF and MPEG-TS. Sizes that mean nothing, as in what was written into a pipe, say nothing.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            length = file.seek(0, os.SEEK_END)
            if head.startswith(b"OggS"):
                return _ogg(file, length)
            if head.startswith((b"GIF87a", b"GIF89a")):
                file.seek(max(0, length - 64))
                # Behind the last block, which is empty; some writers fill up with zeros.
                ends = file.read().rstrip(b"\0\r\n").endswith(b"\0;")
                return "" if ends else _short("has no end mark")
            if head[:1] == b"G" and _is_transport_stream(file, length):
                return _short("ends within a packet") if length % TS_PACKET else ""
            if head[:3] == b"FLV":
                return "" if _ends_with_tag(file, length) else _short("ends within a tag")
            promised = _promised(file, head, length)
    except OSError:
        return ""
    if promised <= length:
        return ""
    return _short(f"holds {length:,} of the {promised:,} bytes that its header promises")


def _short(what: str) -> str:
    return f"{what}: the file was cut short"


def _promised(file: BinaryIO, head: bytes, length: int) -> int:
    """Bytes; 0 where the header does not say."""
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _riff(file, head, length)
    if head[:4] == b"FORM":
        return _sized(8, int.from_bytes(head[4:8], "big"))
    if head[:4] == b".snd":
        return _sized(int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big"))
    if head[:4] == b"caff":
        return _chunks(file, length, 8, 4, 8)
    if head[:16] == W64_RIFF:
        return int.from_bytes(head[16:24], "little")
    if head[:4] == EBML:
        return _matroska(head)
    if head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return _mp3(file, head, length)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _boxes(file, length)
    return 0


def _sized(start: int, size: int) -> int:
    return start + size if 0 < size < MIN_PLACEHOLDER else 0


def _riff(file: BinaryIO, head: bytes, length: int) -> int:
    if head[8:12] != b"WAVE":  # AVI, which has several of these one behind another
        return _chunks(file, length, 0, 4, 4, order="little")
    order = "big" if head[:4] == b"RIFX" else "little"
    at, long_size = 12, 0
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        chunk = file.read(16)
        if len(chunk) < 8:
            return 0
        size = int.from_bytes(chunk[4:8], order)  # type: ignore[arg-type]
        if chunk[:4] == b"ds64":
            file.seek(at + 16)
            long_size = int.from_bytes(file.read(8), "little")
        elif chunk[:4] == b"data":
            if long_size and size == 0xFFFFFFFF:
                return at + 8 + long_size
            return _sized(at + 8, size)
        at += 8 + size + size % 2
    return 0


def _chunks(
    file: BinaryIO, length: int, start: int, name: int, size: int, order: str = "big"
) -> int:
    """Where the last of chunks ends that follow each other, behind a name and a size each."""
    at = start
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        header = file.read(name + size)
        if len(header) < name + size:
            return at
        value = int.from_bytes(header[name:], order)  # type: ignore[arg-type]
        if value >= MIN_PLACEHOLDER or (not value and at == start):
            return 0
        if not header[:name].isascii():
            return at
        at += name + size + value + (value % 2 if order == "little" else 0)
        if at >= length:
            return at - 1 if at == length + 1 else at  # without its last padding
    return 0


def _matroska(head: bytes) -> int:
    at, header = _variable(head, 4)
    start = at + header
    if header < 0 or head[start : start + 4] != SEGMENT:
        return 0
    at, size = _variable(head, start + 4)
    return 0 if size < 0 else at + size


def _variable(data: bytes, at: int) -> tuple[int, int]:
    """Behind a variable-length number of EBML, and the number; -1 where it is not known."""
    first = data[at] if at < len(data) else 0
    if not first:
        return at, -1
    width = 9 - first.bit_length()
    value = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
    unknown = value == (1 << 7 * width) - 1 or at + width > len(data)
    return at + width, -1 if unknown else value


def _boxes(file: BinaryIO, length: int) -> int:
    """Where the last of the boxes of ISO BMFF ends, which follow each other."""
    at = 0
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        header = file.read(16)
        if at >= length or len(header) < 8 or not header[4:8].isascii():
            return min(at, length) if not header else 0
        size = int.from_bytes(header[:4], "big")
        if size == 1 and len(header) == 16:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # to the end of the file, or nonsense
            return 0
        at += size
        if at > length:
            return at
    return 0


def _mp3(file: BinaryIO, head: bytes, length: int) -> int:
    """The first frame says how many bytes there are from it on, where a writer left that there
    (Xing, Info).
    """
    start = 0
    if head[:3] == b"ID3":
        start = 10 + sum(byte << 7 * (3 - at) for at, byte in enumerate(head[6:10]))
    file.seek(start)
    frame = file.read(256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 16 or not frame[at + 7] & XING_BYTES:
        return 0
    field = at + 8 + 4 * (frame[at + 7] & XING_FRAMES)
    promised = start + int.from_bytes(frame[field : field + 4], "big")
    return promised if promised - length > XING_SLACK else 0


def _ends_with_tag(file: BinaryIO, length: int) -> bool:
    """Each tag of FLV is followed by its size."""
    file.seek(max(0, length - 4))
    size = int.from_bytes(file.read(4), "big")
    if size + 4 > length or size < 11:
        return size == 0 and length == 13  # no tag yet
    file.seek(length - 4 - size)
    return int.from_bytes(file.read(4)[1:], "big") == size - 11


def _ogg(file: BinaryIO, length: int) -> str:
    """Each page says how long it is, and the last one that it is the last."""
    file.seek(max(0, length - 2 * OGG_PAGE_BYTES))
    tail = file.read()
    at = tail.rfind(b"OggS")
    page = tail[at : at + 27] if at >= 0 else b""
    if len(page) < 27:
        return _short("ends within a page")
    segments = tail[at + 27 : at + 27 + page[26]]
    if len(segments) < page[26] or at + 27 + page[26] + sum(segments) > len(tail):
        return _short("ends within a page")
    if page[5] & 4:
        return ""
    return (
        "has no last page: the file was cut short, or recorded from a stream that was still running"
    )


def _is_transport_stream(file: BinaryIO, length: int) -> bool:
    if length < 4 * TS_PACKET:
        return False
    file.seek(0)
    data = file.read(3 * TS_PACKET + 1)
    return data[::TS_PACKET] == b"GGGG"
