"""Packets of text and of what was made of it; and what readers of version 1.1 make of them."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Annotated

import msgspec
import numpy as np
import pytest
from msgspec import Meta, Struct

from streamenc.errors import InputError, WireError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.wire import (
    HEADER_BYTES,
    Data,
    Info,
    decode,
    encode_frame,
    encode_info,
    fitted,
    least_bytes,
)
from tests.support import texts

VECTORS = StreamInfo("features", Fraction(1, 1000), Fraction(0), (3, None), "float32", "bytes")
FRAME = Frame(np.ones((3, 1), np.float32), 1500, 400, 2, segment=2**62, revised=True)
WORDS = Frame(np.array([["naïve 猫"]]), 1500, 400, 2, segment=0)


class OldStream(Struct, array_like=True):
    """A described stream, as version 1.1 has it."""

    kind: str
    time_base_numerator: int
    time_base_denominator: int
    rate_numerator: Annotated[int, Meta(ge=1)]
    rate_denominator: int
    shape: tuple[int | None, ...]
    dtype: str
    model: str
    codebook_size: int


class OldInfo(Struct, array_like=True):
    stream: int
    opened_unix_ns: int
    described: OldStream
    tracks: tuple[OldStream, ...]


class OldData(Struct, array_like=True):
    stream: int
    track: int
    seq: int
    pts: int
    duration: int
    flags: int
    arrived_unix_ns: int
    scale: float
    dtype: str
    shape: tuple[int, ...]
    payload: memoryview
    sent_ms: int | None = None


@pytest.mark.parametrize(
    "info", [VECTORS, texts.INFO, StreamInfo.mux([texts.INFO, VECTORS])], ids=str
)
def test_info_comes_back(info: StreamInfo) -> None:
    assert decode(encode_info(info, 1, 5)) == Info(1, 5, info)
    assert least_bytes(info) in (1, 12)


def test_segments_and_revisions_come_back() -> None:
    packet = encode_frame(FRAME, VECTORS, 1)
    got = decode(packet)
    assert isinstance(got, Data) and (got.segment, got.revised) == (2**62, True)
    assert not got.discontinuity
    assert len(packet) - FRAME.data.nbytes <= 81
    plain = decode(encode_frame(replace(FRAME, segment=-1, revised=False), VECTORS, 1))
    assert isinstance(plain, Data) and (plain.segment, plain.revised) == (-1, False)


def test_readers_of_version_1_1_take_vectors_of_text() -> None:
    old = msgspec.msgpack.decode(encode_info(VECTORS, 1, 5)[HEADER_BYTES:], type=OldInfo)
    described = old.described
    assert (described.kind, described.rate_numerator, described.rate_denominator) == (
        "features",
        1,
        1,
    )
    data = msgspec.msgpack.decode(encode_frame(FRAME, VECTORS, 1)[HEADER_BYTES:], type=OldData)
    assert (data.pts, data.duration, data.flags & 1) == (1500, 400, 0)
    assert np.array_equal(np.frombuffer(data.payload, "<f4"), [1, 1, 1])


def test_text_comes_back() -> None:
    for text in ("naïve 猫", "", "a" * 100_000):
        got = decode(encode_frame(replace(WORDS, data=np.array([[text]])), texts.INFO, 1))
        assert isinstance(got, Data) and got.segment == 0
        assert fitted(got, texts.INFO).tolist() == [[text]]


def test_text_that_cannot_be_sent_or_read() -> None:
    with pytest.raises(InputError, match="a packet carries one segment of text"):
        encode_frame(replace(WORDS, data=np.array([["a", "b"]])), texts.INFO, 1)
    with pytest.raises(InputError, match="no Unicode"):
        encode_frame(replace(WORDS, data=np.array([["\ud800"]])), texts.INFO, 1)
    got = decode(encode_frame(WORDS, texts.INFO, 1))
    assert isinstance(got, Data)
    for data, why in (
        (np.array([[0xFF]], np.uint8), "no UTF-8"),
        (np.array([0x41], np.uint8), r"got text as uint8 \(1,\)"),
        (np.array([[1.0]]), "got text as float64"),
    ):
        with pytest.raises(WireError, match=why):
            fitted(replace(got, data=data), texts.INFO)
