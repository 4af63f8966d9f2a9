"""WAV, W64 and CAF whose samples FFmpeg misreads: their header read anew, and a decoder for them.

FFmpeg 8 takes the valid bits of WAVE_FORMAT_EXTENSIBLE for the size of a sample, 24 bits in 32 for
floats of Cool Edit, and big-endian samples (RIFX) for little-endian ones. Of W64 and CAF it takes
the bits that count for the size of a sample, too.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from streamenc.errors import MediaError
from streamenc.io.media.incoming.formats import id3_bytes, recognise

PCM, FLOAT, EXTENSIBLE, NMS_ADPCM = 0x0001, 0x0003, 0xFFFE, 0x0038
LAWS = {0x0006: "alaw", 0x0007: "mulaw"}
# From here on, the length of samples is a recorder's that did not know it: SoX and arecord write
# about 2 GiB, FFmpeg the largest number, others 0.
UNKNOWN_BYTES = 0x7FF0_0000
# What FFmpeg takes padded integers for.
GUESSED = ("pcm_f24le", "pcm_f16le")
# Identifiers of W64: of its file, its kind, its chunks.
W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
W64_REST = bytes.fromhex("f3acd3118cd100c04f8edb8a")
W64_WAVE, W64_FMT = b"wave" + W64_REST, b"fmt " + W64_REST
CAF_FLOAT, CAF_LITTLE_ENDIAN = 1, 2
# How far the chunk `fmt ` may lie behind others.
MAX_SEARCHED_BYTES = 2**20

ReadAt = Callable[[int, int], bytes]  # (offset, size) -> up to size bytes


@dataclass(frozen=True, slots=True)
class WaveHead:
    """What `fmt ` says of the samples.

    tag         Of the format: PCM, FLOAT, ...; of an extensible one its sub-format's.
    bits        That count in each sample.
    size        Bytes that each sample takes; 0 where a sample takes no whole number of bytes.
    big_endian  Whether it is a RIFX.
    data_at     Where the samples begin; 0 where that was not seen.
    data_bytes  How many there are; None where whoever wrote it did not know yet.
    """

    tag: int
    channels: int
    rate: int
    bits: int
    size: int
    big_endian: bool
    extensible: bool
    data_at: int = 0
    data_bytes: int | None = None

    @property
    def padded(self) -> bool:
        """Whether not all bits of a sample count."""
        return self.tag == PCM and self.bits < 8 * self.size

    @property
    def seconds(self) -> float | None:
        """How long it is; None where that is not known."""
        if self.data_bytes is None or not self.rate * self.channels * self.size:
            return None
        return self.data_bytes / self.size / self.channels / self.rate

    @property
    def codec(self) -> str:
        """FFmpeg's name of what decodes these samples; "" for other than plain PCM."""
        order = "be" if self.big_endian else "le"
        if self.tag in LAWS and self.size == 1:
            return f"pcm_{LAWS[self.tag]}"
        if self.tag == FLOAT and self.size in (4, 8):
            return f"pcm_f{8 * self.size}{order}"
        if self.tag != PCM or not 1 <= self.size <= 4 or not 1 <= self.bits <= 8 * self.size:
            return ""
        return "pcm_u8" if self.size == 1 else f"pcm_s{8 * self.size}{order}"


def read_wave_head(read_at: ReadAt) -> WaveHead | None:
    """Of WAVE, also as RIFX and W64, and of CAF where samples are padded; None for all else, and
    where it is not whole."""
    start = read_at(0, 52)
    if start[:16] == W64_RIFF and start[24:40] == W64_WAVE:
        return _wave64_head(read_at)
    if start[:6] == b"caff\0\1" and start[8:12] == b"desc":
        return _caf_head(start[20:])
    if start[:4] not in (b"RIFF", b"RIFX", b"RF64", b"BW64") or start[8:12] != b"WAVE":
        return None
    order = ">" if start[:4] == b"RIFX" else "<"
    at, found = 12, None
    long_bytes: int | None = None  # of RF64, whose other lengths are too short for it
    while at < MAX_SEARCHED_BYTES:
        header = read_at(at, 8)
        if len(header) < 8:
            return found
        size = struct.unpack(order + "I", header[4:])[0]
        if header[:4] == b"data":
            known = size if 0 < size < UNKNOWN_BYTES else long_bytes
            return None if found is None else replace(found, data_at=at + 8, data_bytes=known)
        if header[:4] == b"ds64":
            long_bytes = int.from_bytes(read_at(at + 16, 8), "little") or None
        if header[:4] == b"fmt ":
            found = _head(read_at(at + 8, min(size, 40)), order)
        at += 8 + size + size % 2
    return found


def tag_bytes(read_at: ReadAt) -> int:
    """Bytes of an ID3 tag at the beginning that FFmpeg does not skip by itself, such as that of a
    WAV; 0 where there is none."""
    size = id3_bytes(read_at(0, 10))
    behind = recognise(read_at(size, 16)) if size else None
    return size if behind is not None and behind.name.startswith(("WAV", "AIFF", "AU")) else 0


def bytes_of(path: Path) -> ReadAt:
    """Reads a regular file at any place; b"" where that cannot be."""

    def read_at(offset: int, size: int) -> bytes:
        if not path.is_file():  # a device would wait
            return b""
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except (OSError, OverflowError, ValueError):
            return b""

    return read_at


def _wave64_head(read_at: ReadAt) -> WaveHead | None:
    at = 40
    while at < MAX_SEARCHED_BYTES and len(header := read_at(at, 24)) == 24:
        size = int.from_bytes(header[16:], "little")
        if header[:16] == W64_FMT:
            return _head(read_at(at + 24, min(size - 24, 40)), "<") if size > 24 else None
        at += max(24, -(-size // 8) * 8)
    return None


def _caf_head(desc: bytes) -> WaveHead | None:
    """Of whole numbers that take more room than their bits need; all else FFmpeg reads right."""
    if len(desc) < 32:
        return None
    rate, codec, flags, packet, frames, channels, bits = struct.unpack(">d4sIIIII", desc[:32])
    if codec != b"lpcm" or flags & CAF_FLOAT or frames != 1 or not channels or packet % channels:
        return None
    size, big_endian = packet // channels, not flags & CAF_LITTLE_ENDIAN
    if not 2 <= size <= 4 or not 0 < bits < 8 * size or not 1 <= rate <= 2**31:
        return None
    return WaveHead(PCM, channels, round(rate), bits, size, big_endian, extensible=True)


def _head(fmt: bytes, order: str) -> WaveHead | None:
    if len(fmt) < 16:
        return None
    tag, channels, rate, byte_rate, align, bits = struct.unpack(order + "HHIIHH", fmt[:16])
    extensible = tag == EXTENSIBLE and len(fmt) >= 28
    size = -(-bits // 8)
    if extensible:
        valid = struct.unpack(order + "H", fmt[18:20])[0]
        tag = struct.unpack(order + "I", fmt[24:28])[0]
        bits = valid if 0 < valid <= bits else bits
    if channels and align and align % channels == 0 and (extensible or byte_rate == rate * align):
        # Where both numbers say that samples take more room than their bits need, they do.
        size = max(size, align // channels)
    return WaveHead(tag, channels, rate, bits, size, order == ">", extensible)


def wave_decoder(
    head: WaveHead | None, stream: Any, name: str, remarks: list[str]
) -> WaveDecoder | None:
    """What decodes `stream` of a WAV in place of FFmpeg's decoder; None where that one is right.

    Raises MediaError for what no decoder here reads.
    """
    if stream.type != "audio":
        return None
    if head is None:
        if stream.codec_context.name in GUESSED:
            raise MediaError(
                f"{name!r} is a WAV whose samples FFmpeg would guess, and whose header cannot be "
                "read from here: download it first"
            )
        return None
    if head.tag == NMS_ADPCM and head.bits in (2, 3, 4):
        raise MediaError(
            f"{name!r} holds NMS ADPCM, which FFmpeg takes for AMR; convert it with SoX: sox "
            "IN.wav OUT.flac"
        )
    padded = head.padded and head.size > 1
    if not head.codec or (head.codec == stream.codec_context.name and not padded):
        return None
    return WaveDecoder(head, stream, name, remarks)


class WaveDecoder:
    """Decodes packets of PCM as a WAV's own header describes them.

    Where fewer bits count than a sample takes, they are its upper ones, as the format has it. Files
    that have them below are told by their samples, whose upper bits then only repeat the sign,
    while the lower ones are not zero.

    remarks  Gets what was made of the samples, for people.
    """

    def __init__(self, head: WaveHead, stream: Any, name: str, remarks: list[str]) -> None:
        self.remarks = remarks
        self._head, self._name = head, name
        self._padding_bits = 8 * head.size - head.bits if head.padded and head.size > 1 else 0
        self._shift: int | None = None if self._padding_bits else 0
        self._theirs = stream.codec_context
        decoder: Any = av.CodecContext.create(head.codec, "r")
        decoder.sample_rate, decoder.layout = stream.sample_rate, stream.layout
        self._decoder = decoder

    def decode(self, packet: Any) -> list[Any]:
        """Frames of PyAV, without times: the demuxer dates them by the wrong size of a sample.

        Raises what its decoders raise.
        """
        frames = list(self._decoder.decode(packet if packet.size else None))
        if self._shift is None:
            self._judge(frames)
        if self._decoder is self._theirs:
            frames = list(self._theirs.decode(packet))
        elif self._shift:
            frames = [self._shifted(frame) for frame in frames]
        for frame in frames:
            frame.pts, frame.duration = None, 0
        return frames

    def _judge(self, frames: list[Any]) -> None:
        """Where the bits that count lie, as soon as samples tell it."""
        samples = [frame.to_ndarray().reshape(-1) for frame in frames]
        data = np.concatenate(samples) if samples else np.zeros(0, np.int32)
        if not data.any():
            return
        head, padding = self._head, self._padding_bits
        below = 8 * data.dtype.itemsize - head.bits
        upper = not (data & ((1 << below) - 1)).any()
        lower = bool((data << padding >> padding == data).all())
        if upper and lower:
            return
        self._shift = padding if lower else 0
        if lower:
            self.remarks.append(
                f"{self._name} has the {head.bits} bits that count in the lower ones of "
                f"{8 * head.size}, against its format; they were taken from there"
            )
        elif not upper and not head.extensible and (head.bits, head.size) == (24, 4):
            # Cool Edit's floats are declared like this.
            self._decoder = self._theirs

    def _shifted(self, frame: Any) -> Any:
        data = frame.to_ndarray() << self._shift
        made = av.AudioFrame.from_ndarray(data, frame.format.name, frame.layout)
        made.sample_rate = frame.sample_rate
        return made
