"""Whether FFmpeg decodes a TIFF, and all its strips are there (TIFF 6.0, sections 2, 3 and 15).

Where it cannot, it gives black or green images without a word.
"""

from __future__ import annotations

COMPRESSION, STRIP_OFFSETS, STRIP_BYTES, TILE_WIDTH = 259, 273, 279, 322
JPEG = {6, 7}
# Bytes of an item by type: of short and long numbers, all that is asked for here.
ITEM_BYTES = {3: 2, 4: 4}
ENTRY_BYTES = 12
MAX_ITEMS = 100_000


def is_decodable(data: bytes) -> bool:
    """Of the first image of a file."""
    order = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    def items(at: int) -> list[int]:
        size = ITEM_BYTES.get(number(at + 2, 2), 0)
        count = min(number(at + 4, 4), MAX_ITEMS)
        start = at + 8 if size * count <= 4 else number(at + 8, 4)
        return [number(start + size * index, size) for index in range(count)] if size else []

    directory = number(4, 4)
    if directory + 2 > len(data):
        return False
    entries = {}
    for index in range(number(directory, 2)):
        at = directory + 2 + ENTRY_BYTES * index
        if at + ENTRY_BYTES > len(data):
            return False
        entries[number(at, 2)] = at
    if TILE_WIDTH in entries or (COMPRESSION in entries and {*items(entries[COMPRESSION])} & JPEG):
        return False
    if not {STRIP_OFFSETS, STRIP_BYTES} <= entries.keys():
        return True
    strips = zip(items(entries[STRIP_OFFSETS]), items(entries[STRIP_BYTES]), strict=False)
    return all(start + size <= len(data) for start, size in strips)
