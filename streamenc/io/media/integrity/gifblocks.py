"""Whether an image of a GIF ends where its blocks do (GIF89a, chapters 15 to 27)."""

from __future__ import annotations

HEADER_BYTES, DESCRIPTOR_BYTES = 13, 10
EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B


def ends_whole(data: bytes) -> bool:
    """Of a packet: extensions and an image, with the file's header before the first one."""
    at, has_image = 0, False
    if data.startswith(b"GIF8") and len(data) >= HEADER_BYTES:
        at = HEADER_BYTES + _table_bytes(data[10])
    while at < len(data):
        if data[at] == EXTENSION:
            at += 2
        elif data[at] == IMAGE and at + DESCRIPTOR_BYTES <= len(data):
            has_image = True
            at += DESCRIPTOR_BYTES + _table_bytes(data[at + 9]) + 1  # the size of its first codes
        else:
            return has_image and data[at] == TRAILER
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1  # a block of 0 bytes is the last one
    return has_image and at == len(data)


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
