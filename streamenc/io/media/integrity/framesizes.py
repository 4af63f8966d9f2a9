"""How long a frame of sound says it is, of formats whose last one a decoder takes half as well.

ISO/IEC 11172-3, 2.4.1.3 and 13818-3 (MPEG audio); ATSC A/52, table 5.18 and annex E (AC-3, E-AC-3).
"""

from __future__ import annotations

# By codec, as FFmpeg calls it, in files that are nothing but frames.
FORMATS = {"mp3", "ac3", "eac3"}
# Kilobits per second by index from 1 on: MPEG 1 layers 3 and 2, and MPEG 2 of both.
LAYER3 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
LAYER2 = (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
LOW = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
RATES = (44_100, 48_000, 32_000)
MPEG1, MPEG25 = 3, 0
AC3 = (
    32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640,
)  # fmt: skip


def is_cut(format: str, data: bytes) -> bool:
    """Whether a packet of one of FORMATS holds less than its header says."""
    if len(data) < 6:
        return True
    return len(data) < (_mpeg(data) if format == "mp3" else _dolby(data))


def _mpeg(data: bytes) -> int:
    """Bytes; 0 where the header does not say."""
    version, layer = data[1] >> 3 & 3, 4 - (data[1] >> 1 & 3)
    rate_index, bitrate_index = data[2] >> 2 & 3, data[2] >> 4
    if data[0] != 0xFF or layer not in (2, 3) or rate_index == 3 or not 0 < bitrate_index < 15:
        return 0
    low = version != MPEG1
    table = LOW if low else LAYER3 if layer == 3 else LAYER2
    rate = RATES[rate_index] // (4 if version == MPEG25 else 2 if low else 1)
    per_frame = 72_000 if low and layer == 3 else 144_000
    return per_frame * table[bitrate_index - 1] // rate + (data[2] >> 1 & 1)


def _dolby(data: bytes) -> int:
    if data[:2] != b"\x0b\x77":
        return 0
    if data[5] >> 3 > 10:  # E-AC-3
        return 2 * ((data[2] & 7) << 8 | data[3]) + 2
    rate_index, size_index = data[4] >> 6, data[4] & 63
    if rate_index == 3 or size_index // 2 >= len(AC3):
        return 0
    kilobits = AC3[size_index // 2]
    if rate_index == 1:  # 44.1 kHz: whole words, rounded down or up
        return 2 * (kilobits * 96_000 // 44_100 + size_index % 2)
    return kilobits * (4 if rate_index == 0 else 6)
