"""EnCodec's own file format, `.ecdc`: its header, its bits and its lengths, without any I/O.

    "ECDC", version (uint8, 0), length of the header (uint32, big-endian)
    header: JSON {"m": model name, "al": samples of audio, "nc": codebooks, "lm": bool}
    24 kHz: the codes of the whole clip
    48 kHz: for each segment (48,000 samples, one each 47,520) a scale (float32, big-endian), codes

Codes are 10 bits each, least significant first, step by step, all codebooks of a step together; the
last byte of the clip or segment is filled up with zeros.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from streamenc.errors import MediaError

PREFIX = struct.Struct("!4sBI")
SCALE = struct.Struct("!f")
MAGIC, VERSION = b"ECDC", 0
MAX_HEADER_BYTES = 4096
# Room for a header that is rewritten at the end; JSON may end in spaces.
HEADER_BYTES = 96
MAX_CODEBOOKS = 32
MAX_SAMPLES = 2**40
BITS = 10
HOP = 320
# Code frames of a 24 kHz clip that are read at once; any multiple of 4 fills whole bytes.
PIECE = 12


@dataclass(frozen=True, slots=True)
class Model:
    """What the format knows of a model; `segment` and `stride` are samples, 0 without segments."""

    name: str
    rate: int
    segment: int
    stride: int

    @property
    def frame_rate(self) -> Fraction:
        """Code frames per second of audio; the segments' overlap counts twice."""
        if self.segment:
            return Fraction(self.segment * self.rate, HOP * self.stride)
        return Fraction(self.rate, HOP)


MODELS = {
    "encodec_24khz": Model("encodec_24khz", 24000, 0, 0),
    "encodec_48khz": Model("encodec_48khz", 48000, 48000, 47520),
}


@dataclass(frozen=True, slots=True)
class Header:
    """samples: length of the audio; 0 in a file that was never completed."""

    model: Model
    samples: int
    codebooks: int

    def to_bytes(self) -> bytes:
        """Prefix and JSON, always of the same length."""
        made = {"m": self.model.name, "al": self.samples, "nc": self.codebooks, "lm": False}
        text = json.dumps(made).encode().ljust(HEADER_BYTES)
        return PREFIX.pack(MAGIC, VERSION, len(text)) + text

    @classmethod
    def from_json(cls, text: bytes) -> Header:
        """Raises MediaError where it is damaged, of another model, or arithmetic-coded."""
        try:
            made = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MediaError(f"the .ecdc header is damaged: {error}") from error
        if not isinstance(made, dict):
            raise MediaError(f"the .ecdc header must be a JSON object; got {made!r:.80}")
        name, samples, codebooks = made.get("m"), made.get("al"), made.get("nc")
        if not isinstance(name, str) or name not in MODELS:
            raise MediaError(f"the .ecdc is of model {name!r:.80}; known are {', '.join(MODELS)}")
        if made.get("lm") is not False:
            raise MediaError(
                "the .ecdc is compressed by EnCodec's language model (arithmetic coding), which "
                "needs decoding by the encodec package; write it again there without --lm"
            )
        if type(samples) is not int or not 0 <= samples <= MAX_SAMPLES:
            raise MediaError(f"the .ecdc header says {samples!r:.80} samples of audio")
        if type(codebooks) is not int or not 1 <= codebooks <= MAX_CODEBOOKS:
            raise MediaError(f"the .ecdc header says {codebooks!r:.80} codebooks; 1 to 32 exist")
        return cls(MODELS[name], samples, codebooks)

    def pieces(self) -> Iterator[Piece]:
        """What a reader takes at once: segments, or a few code frames of a clip."""
        model, end = self.model, self.samples or MAX_SAMPLES
        if model.segment:
            for pts in range(0, end, model.stride):
                count = frames_of(min(end - pts, model.segment))
                yield Piece(pts, min(end - pts, model.stride), count)
            return
        for pts in range(0, end, PIECE * HOP):
            samples = min(end - pts, PIECE * HOP)
            yield Piece(pts, samples, frames_of(samples))

    def bytes_of(self, count: int) -> int:
        """Bytes of a piece of `count` code frames."""
        bits = count * self.codebooks * BITS
        return (bits + 7) // 8 + (SCALE.size if self.model.segment else 0)


@dataclass(frozen=True, slots=True)
class Piece:
    """`count` code frames from sample `pts` on; the next piece, or the end, is `duration` later."""

    pts: int
    duration: int
    count: int


class BitPacker:
    """Codes to bytes, over any number of calls."""

    def __init__(self) -> None:
        self._bits = np.zeros(0, np.uint8)

    def pack(self, codes: np.ndarray[Any, Any]) -> bytes:
        """(codebooks, frames) -> as many whole bytes as there are; the last bits wait."""
        values = np.ascontiguousarray(codes.T, "<u2").view(np.uint8).reshape(-1, 2)
        bits = np.unpackbits(values, axis=1, bitorder="little")[:, :BITS].ravel()
        bits = np.concatenate((self._bits, bits))
        whole = len(bits) - len(bits) % 8
        self._bits = bits[whole:]
        return np.packbits(bits[:whole], bitorder="little").tobytes()

    def flush(self) -> bytes:
        """The last byte, filled up with zeros, if one is begun."""
        bits, self._bits = self._bits, self._bits[:0]
        return np.packbits(bits, bitorder="little").tobytes()


def unpack(raw: bytes, codebooks: int, count: int) -> np.ndarray[Any, Any]:
    """Bytes that begin with `count` code frames -> uint16 (codebooks, count)."""
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    values = np.zeros((count * codebooks, 16), np.uint8)
    values[:, :BITS] = bits[: count * codebooks * BITS].reshape(-1, BITS)
    steps = np.packbits(values, axis=1, bitorder="little").view("<u2").reshape(count, codebooks)
    return np.ascontiguousarray(steps.T, np.uint16)


def frames_of(samples: int) -> int:
    """Code frames of `samples` samples."""
    return -(-samples // HOP)


def fit_samples(samples: int, count: int, model: Model, before: int | None = None) -> int:
    """Samples of the clip, or of its last segment, that make a reader expect `count` code frames.

    samples  How many there are, as far as is known: the result is the nearest that does.
    before   Code frames of the segment before, whose length says, too, how far the audio goes.
    """
    low, high = (count - 1) * HOP + 1, count * HOP
    if model.segment:
        high = min(high, model.stride)
    if before is not None:
        edge = model.segment - HOP - model.stride
        low, high = (max(low, edge + 1), high) if before == model.segment // HOP else (low, edge)
    samples = max(low, min(samples, high))
    # The encodec package rounds up a float product, which for some lengths, such as 21 whole
    # frames, comes out one frame too high: it would miss that frame at the end of the file.
    if math.ceil(samples / model.rate * (model.rate // HOP)) > count:
        samples -= 1
    return samples
