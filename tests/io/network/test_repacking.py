"""Packets whose fields change one by one."""

from __future__ import annotations

from dataclasses import fields, replace
from fractions import Fraction

import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.repacking import flagged, restreamed
from streamenc.io.network.wire import Data, Info, decode, encode_frame, encode_info

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)


def same(got: Data, wanted: Data) -> bool:
    names = [field.name for field in fields(Data) if field.name != "data"]
    return np.array_equal(got.data, wanted.data) and all(
        getattr(got, name) == getattr(wanted, name) for name in names
    )


def test_a_flag_and_a_stream() -> None:
    frame = Frame(np.arange(16, dtype=np.uint16).reshape(8, 2), -5, 7, 3, scale=0.1, segment=4)
    packet = encode_frame(frame.with_(revised=True), CODES, 7, 11, sent_ms=2**40)
    data = decode(packet)
    assert isinstance(data, Data)
    got = decode(flagged(packet))
    assert isinstance(got, Data) and same(got, replace(data, discontinuity=True))
    assert flagged(flagged(packet)) == flagged(packet)
    got = decode(restreamed(packet, 2**62))
    assert isinstance(got, Data) and same(got, replace(data, stream=2**62))


def test_what_a_stream_is() -> None:
    got = decode(restreamed(encode_info(CODES, 1, 5), 9))
    assert got == Info(9, 5, CODES)
