"""What the first bytes of a file or a pipe say that it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Holds = Literal["media", "image", "tokens", "other"]

# As many as any of the formats below needs, but for chains of frames.
ENOUGH_BYTES = 16
# Samples can look like the head of one frame by chance, not like so many, each where the one before
# it ends.
FRAMES_IN_A_ROW = 3
TS_PACKET_BYTES = 188
TEXT_BYTES = 32

BITRATES = {  # kbit/s by (MPEG-1?, layer), ISO/IEC 11172-3 and 13818-3
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MPEG1_RATES = (44100, 48000, 32000)
AC3_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of files.

    name   As people say it: "WAV".
    holds  "media": sound, or images and perhaps sound; "image": one image; "tokens": streams of our
           own; "other": what no source here reads.
    """

    name: str
    holds: Holds = "media"


# (where it stands, what stands there) -> what it is; all of them must fit.
_HEADS: list[tuple[tuple[tuple[int, bytes], ...], Format]] = [
    (((0, b"RIFF"), (8, b"WAVE")), Format("WAV")),
    (((0, b"RIFX"), (8, b"WAVE")), Format("WAV (RIFX)")),
    (((0, b"RF64"),), Format("WAV (RF64)")),
    (((0, b"BW64"),), Format("WAV (BW64)")),
    (((0, b"riff\x2e\x91\xcf\x11"),), Format("WAV (Wave64)")),
    (((0, b"RIFF"), (8, b"AVI ")), Format("AVI")),
    (((0, b"RIFF"), (8, b"WEBP")), Format("WebP image", "image")),
    (((0, b"fLaC"),), Format("FLAC")),
    (((0, b"OggS\0"),), Format("Ogg")),
    (((0, b"FORM"), (8, b"AIFF")), Format("AIFF")),
    (((0, b"FORM"), (8, b"AIFC")), Format("AIFF-C")),
    (((0, b"FORM"), (8, b"8SVX")), Format("IFF")),
    (((0, b".snd"),), Format("AU")),
    (((0, b"dns."),), Format("AU of little-endian samples")),
    (((0, b"caff\0\1"),), Format("CAF")),
    (((0, b"NIST_1A"),), Format("NIST SPHERE")),
    (((0, b"Creative Voice File"),), Format("VOC")),
    (((0, b"#!AMR"),), Format("AMR")),
    (((0, b"wvpk"),), Format("WavPack")),
    (((0, b"MAC "),), Format("Monkey's Audio")),
    (((0, b"TTA1"),), Format("True Audio")),
    (((0, b"DSD "),), Format("DSD")),
    (((0, b"FRM8"), (12, b"DSD ")), Format("DSDIFF")),
    (((0, b"MPCK"),), Format("Musepack")),
    (((0, b"MP+"),), Format("Musepack")),
    (((0, b"ADIF"),), Format("AAC (ADIF)")),
    (((0, b".RMF\0"),), Format("RealMedia")),
    (((0, b"\x64\xa3\x01\0"),), Format("IRCAM")),
    (((0, b"\x72\xf8\x1f\x4e"),), Format("S/PDIF (IEC 61937)")),
    (((0, b"\x7f\xfe\x80\x01"),), Format("DTS")),
    (((4, b"ftyp"),), Format("MP4")),
    (((4, b"moov"),), Format("QuickTime")),
    (((4, b"mdat"),), Format("QuickTime")),
    (((4, b"wide"),), Format("QuickTime")),
    (((0, b"\x1a\x45\xdf\xa3"),), Format("Matroska or WebM")),
    (((0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),), Format("ASF (WMA, WMV)")),
    (((0, b"FLV\x01"),), Format("FLV")),
    (((0, b"\0\0\x01\xba"),), Format("MPEG program stream")),
    (((0, b"#EXTM3U"),), Format("playlist (HLS)")),
    (((0, b"YUV4MPEG2"),), Format("YUV4MPEG")),
    (((0, b"\x06\x0e\x2b\x34\x02\x05"),), Format("MXF")),
    (((0, b"\0\0\x01\xb3"),), Format("MPEG video", "image")),
    (((0, b"\0\0\0\x01\x67"),), Format("H.264", "image")),
    (((0, b"\0\0\0\x01\x27"),), Format("H.264", "image")),
    (((0, b"\0\0\0\x01\x40\x01"),), Format("H.265", "image")),
    (((0, b"nut/multimedia"),), Format("NUT")),
    (((0, b"\xff\xd8\xff"),), Format("JPEG image", "image")),
    (((0, b"\x89PNG\r\n\x1a\n"),), Format("PNG image", "image")),
    (((0, b"GIF87a"),), Format("GIF image", "image")),
    (((0, b"GIF89a"),), Format("GIF image", "image")),
    (((0, b'{"info":'),), Format("stream of JSON lines", "tokens")),
    (((0, b"ARROW1\0\0"),), Format("Arrow file", "tokens")),
    (((0, b"ECDC"),), Format(".ecdc", "tokens")),
    (((0, b"\x1f\x8b\x08"),), Format("gzip archive", "other")),
    (((0, b"PK\x03\x04"),), Format("zip archive", "other")),
    (((0, b"%PDF-"),), Format("PDF", "other")),
    (((0, b"\xfd7zXZ\0"),), Format("xz archive", "other")),
    (((0, b"\x28\xb5\x2f\xfd"),), Format("zstd archive", "other")),
    (((0, b"7z\xbc\xaf\x27\x1c"),), Format("7z archive", "other")),
    (((0, b"\x93NUMPY"),), Format("array of numpy", "other")),
]


def recognise(head: bytes, ended: bool = False) -> Format | None:
    """What `head` begins with; None for no format that is known here, such as bare samples.

    ended  There are no more bytes than these.
    """
    for marks, found in _HEADS:
        if all(head[at : at + len(mark)] == mark for at, mark in marks):
            return found
    if _is_arrow_stream(head):
        return Format("recording (Arrow stream)", "tokens")
    if id3_bytes(head):
        return Format("MP3, or sound behind an ID3 tag")
    for name, frame in _FRAMED.items():
        count, at = _chain(head, frame)
        if count >= FRAMES_IN_A_ROW or (ended and count and at == len(head)):
            return Format(name)
    text = head[: 8 * TEXT_BYTES]
    if len(text) >= TEXT_BYTES and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in text):
        return Format("text", "other")
    return None


def undecided(head: bytes) -> bool:
    """Whether more bytes could change what `recognise` says of so few."""
    if len(head) < ENOUGH_BYTES:
        return True
    if recognise(head) is not None:
        return False
    return any(_chain(head, frame)[0] >= 0 for frame in _FRAMED.values()) or _is_text_so_far(head)


def index_is_last(read_at: Callable[[int, int], bytes]) -> bool:
    """Whether an MP4 has its samples before its index (moov), so that it cannot be read as it
    comes.

    read_at  (offset, size) -> up to size bytes.
    """
    at = 0
    for _ in range(16):
        header = read_at(at, 16)
        size, name = int.from_bytes(header[:4], "big"), header[4:8]
        if name not in (b"ftyp", b"free", b"skip", b"wide", b"uuid", b"pdin", b"styp", b"mdat"):
            return False
        if name == b"mdat":
            return True
        at += size if size > 1 else int.from_bytes(header[8:16], "big")
    return False


def id3_bytes(head: bytes) -> int:
    """Bytes of the ID3v2 tag that `head` begins with, 0 where there is none."""
    if len(head) < 10 or head[:3] != b"ID3" or not 2 <= head[3] <= 4 or max(head[6:10]) > 127:
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[3] == 4 and head[5] & 0x10 else 0)


def _is_arrow_stream(head: bytes) -> bool:
    """A mark, the length of the schema's message, and where its root lies: the mark alone could be
    silence, two samples of -1."""
    if len(head) < 12 or head[:4] != b"\xff\xff\xff\xff":
        return False
    length, root = (int.from_bytes(head[at : at + 4], "little") for at in (4, 8))
    return 64 <= length < 2**28 and length % 8 == 0 and 4 <= root <= 64


def _is_text_so_far(head: bytes) -> bool:
    return len(head) < TEXT_BYTES and all(32 <= b < 127 or b in b"\t\r\n" for b in head)


Frame = Callable[[bytes], tuple[object, int] | None]


def _chain(head: bytes, frame: Frame) -> tuple[int, int]:
    """(how many frames of one kind follow each other, where the next one would be); count -1 where
    the chain breaks, and 0 where there is too little to tell."""
    at = count = 0
    kind: object = None
    while at + 7 <= len(head) and count < FRAMES_IN_A_ROW:
        found = frame(head[at : at + 7])
        if found is None or (count and found[0] != kind):
            return -1, at
        kind, count, at = found[0], count + 1, at + found[1]
    return count, at


def _mpeg_frame(head: bytes) -> tuple[object, int] | None:
    """(what stays the same, bytes) of a frame of MPEG audio, layers I to III."""
    if head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or not 1 <= bitrate <= 14:
        return None
    mpeg1 = version == 3
    kbits = BITRATES[mpeg1, layer][bitrate - 1]
    hertz = MPEG1_RATES[rate] >> (0 if mpeg1 else 1 if version == 2 else 2)
    if layer == 1:
        length = (12 * kbits * 1000 // hertz + padding) * 4
    else:
        length = (144 if mpeg1 or layer == 2 else 72) * kbits * 1000 // hertz + padding
    return (version, layer, rate), length


def _adts_frame(head: bytes) -> tuple[object, int] | None:
    """The same of a frame of AAC in ADTS."""
    if head[0] != 0xFF or head[1] & 0xF6 != 0xF0:
        return None
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    rate = head[2] >> 2 & 15
    return None if rate > 12 or length < 8 else ((head[1], rate), length)


def _latm_frame(head: bytes) -> tuple[object, int] | None:
    """The same of a frame of AAC in LOAS."""
    if head[0] != 0x56 or head[1] & 0xE0 != 0xE0:
        return None
    return 0, 3 + ((head[1] & 31) << 8 | head[2])


def _ac3_frame(head: bytes) -> tuple[object, int] | None:
    """The same of a frame of AC-3 or E-AC-3."""
    if head[:2] != b"\x0b\x77":
        return None
    rate, code, version = head[4] >> 6, head[4] & 63, head[5] >> 3
    if version > 10:
        return ("E-AC-3", 2 * (((head[2] & 7) << 8 | head[3]) + 1)) if version <= 16 else None
    if rate == 3 or code >= 2 * len(AC3_KBITS):
        return None
    kbits = AC3_KBITS[code >> 1]
    words = (2 * kbits, kbits * 96_000 // 44_100 + (code & 1), 3 * kbits)[rate]
    return rate, 2 * words


def _ts_packet(head: bytes) -> tuple[object, int] | None:
    """The same of a packet of an MPEG transport stream."""
    return (0, TS_PACKET_BYTES) if head[0] == 0x47 and not head[1] & 0x80 else None


_FRAMED: dict[str, Frame] = {
    "MP3 or another MPEG audio": _mpeg_frame,
    "AAC (ADTS)": _adts_frame,
    "AAC (LATM)": _latm_frame,
    "AC-3": _ac3_frame,
    "MPEG transport stream": _ts_packet,
}
