"""The packet format: it comes back as sent, as documented, and hostile bytes raise WireError."""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import FitError, InputError, WireError
from streamenc.graph.frames import Frame, StreamInfo, round_to_bfloat16
from streamenc.io.network.wire import (
    HEADER_BYTES,
    MAX_CONTROL_BYTES,
    MAX_INFO_BYTES,
    MAX_PACKET_BYTES,
    Bye,
    Credit,
    Data,
    End,
    Info,
    Packet,
    decode,
    encode_bye,
    encode_credit,
    encode_end,
    encode_frame,
    encode_info,
    fitted,
)
from tests.support.profile import examples

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)
FEATURES = StreamInfo("features", Fraction(1, 90000), Fraction(100), (80, None), "float16", "mel")
AUDIO = StreamInfo("audio", Fraction(1, 44100), Fraction(44100), (2, None), "float32")
MUX = StreamInfo("mux", Fraction(1, 90000), Fraction(0), (), "", tracks=(CODES, FEATURES))
STREAM = 0x0123456789ABCDEF
OPENED = 1_767_225_600_000_000_000
YEAR_S = 365 * 24 * 3600


def codes(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def body(packet: bytes) -> list[object]:
    return msgspec.msgpack.decode(packet[HEADER_BYTES:])


def packed(kind: bytes, fields: object, version: bytes = b"\x01\x00") -> bytes:
    return b"SE" + version + kind + msgspec.msgpack.encode(fields)


VIDEO = StreamInfo("video", Fraction(1, 90_000), Fraction(30_000, 1001), (3, None, 5, 12), "uint8")
GRID = StreamInfo(
    "codes", Fraction(1, 90_000), Fraction(30, 8), (1, None, 3, 5), "uint16", "dv", 64_000
)
LATENTS = StreamInfo("features", Fraction(1, 25), Fraction(25), (16, None, 3, 5), "float32", "cv")
FRAME = Frame(codes(8, 1), pts=-3840, duration=1920, seq=2, discontinuity=True, scale=0.1)
VALID = {
    "info": encode_info(CODES, STREAM, OPENED),
    "mux": encode_info(MUX, STREAM, OPENED),
    "data": encode_frame(replace(FRAME, segment=7), CODES, STREAM, OPENED + 5),
    "end": encode_end(End(STREAM, 3, (3,))),
    "credit": encode_credit(Credit(STREAM, 2, 16)),
    "bye": encode_bye(Bye(STREAM)),
}


@pytest.mark.parametrize("info", [CODES, FEATURES, AUDIO, VIDEO, GRID, LATENTS, MUX], ids=str)
def test_info_comes_back(info: StreamInfo) -> None:
    assert decode(encode_info(info, STREAM, OPENED)) == Info(STREAM, OPENED, info)


@pytest.mark.parametrize(
    ("info", "data"),
    [
        (CODES, codes(8, 1)),
        (CODES, codes(5, 123)),
        (CODES, codes(8, 0)),
        (CODES, codes(123, 5)[::2, ::-1].T),
        (FEATURES, np.linspace(-1, 1, 240, dtype=np.float16).reshape(80, 3)),
        (AUDIO, np.linspace(-1, 1, 246, dtype=np.float32).reshape(2, 123)),
        (AUDIO, np.linspace(-1, 1, 246).reshape(2, 123).astype(">f4")),
        # Pixels as they lie in memory: a view of (height, width, 3).
        (VIDEO, np.arange(180, dtype=np.uint8).reshape(5, 12, 3).transpose(2, 0, 1)[:, None]),
        (GRID, np.linspace(0, 63_999, 15).astype(np.uint16).reshape(1, 1, 3, 5)),
        (LATENTS, np.linspace(-9, 9, 480, dtype=np.float32).reshape(16, 2, 3, 5)),
    ],
)
def test_data_come_back(info: StreamInfo, data: np.ndarray) -> None:
    frame = replace(FRAME, data=data)
    got = decode(encode_frame(frame, info, STREAM, OPENED))
    assert isinstance(got, Data)
    assert np.array_equal(got.data, data) and got.data.shape == data.shape
    assert got.data.dtype == info.dtype and not got.data.flags.writeable
    fitted(got, info)
    assert (got.stream, got.track, got.seq, got.pts) == (STREAM, 0, 2, -3840)
    assert (got.duration, got.discontinuity, got.scale) == (1920, True, 0.1)
    assert got.arrived_unix_ns == OPENED


@pytest.mark.parametrize(
    ("books", "dtype"), [(256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")]
)
def test_codes_travel_in_the_smallest_type(books: int, dtype: str) -> None:
    info = replace(CODES, codebook_size=books, dtype="int64")
    frame = replace(FRAME, data=np.array([[0], [books - 1]]))
    packet = encode_frame(frame, info, STREAM)
    got = decode(packet)
    assert body(packet)[8] == dtype
    assert isinstance(got, Data) and np.array_equal(got.data, frame.data)
    described = decode(encode_info(info, STREAM, OPENED))
    assert isinstance(described, Info) and described.info.dtype == got.data.dtype
    with pytest.raises(InputError, match="codes from -1 to 0 do not fit"):
        encode_frame(replace(FRAME, data=np.array([[0], [-1]])), info, STREAM)


def test_overhead_is_at_most_72_bytes() -> None:
    """After a year of 48 kHz audio in 20 ms frames, in its longest form."""
    shape = (2, 960)
    seq, pts = YEAR_S * 50, YEAR_S * 48000
    frame = Frame(np.zeros(shape, np.float32), pts, 960, seq, True, scale=0.1)
    info = replace(AUDIO, time_base=Fraction(1, 48000), rate=Fraction(48000))
    late = OPENED + YEAR_S * 10**9
    for payload, packet in (
        (frame.data.nbytes, encode_frame(frame, info, STREAM, late, sent_ms=YEAR_S * 1000)),
        (16, encode_frame(replace(FRAME, pts=pts, seq=seq), CODES, STREAM, late, None, 10**9)),
    ):
        assert len(packet) - payload <= 72


def test_what_cannot_be_sent() -> None:
    with pytest.raises(FitError, match="codebook_size"):
        encode_info(replace(CODES, codebook_size=0), STREAM, OPENED)
    with pytest.raises(FitError, match="whole numbers for codes"):
        encode_info(replace(FEATURES, dtype="int16"), STREAM, OPENED)
    with pytest.raises(FitError, match="mux again"):
        encode_info(replace(MUX, tracks=(MUX,)), STREAM, OPENED)
    with pytest.raises(FitError, match="64 bits"):
        encode_info(replace(CODES, time_base=Fraction(1, 2**64)), STREAM, OPENED)
    with pytest.raises(FitError, match="too long"):
        encode_info(replace(CODES, model="m" * 2000), STREAM, OPENED)
    with pytest.raises(InputError, match="takes 16777216 bytes.*shorter frames"):
        encode_frame(replace(FRAME, data=np.zeros((2, 2**21), np.float32)), AUDIO, STREAM)


@pytest.mark.parametrize(
    ("info", "cure"),
    [
        (replace(VIDEO, shape=(3, None, 3000, 4000)), r"36000000 bytes.*--size WIDTHxHEIGHT\)$"),
        (replace(LATENTS, shape=(768, None, 80, 80)), "19660800 bytes.*--dtype float16"),
        (StreamInfo.mux([AUDIO, replace(VIDEO, shape=(3, 1, 3000, 4000))]), "36000000 bytes"),
    ],
)
def test_what_no_packet_holds_is_refused_before_its_first_frame(
    info: StreamInfo, cure: str
) -> None:
    with pytest.raises(FitError, match=cure):
        encode_info(info, STREAM, OPENED)
    encode_info(replace(VIDEO, shape=(3, None, 2000, 2700)), STREAM, OPENED)
    # There may be fewer codebooks.
    encode_info(replace(GRID, shape=(32, None, 512, 1024)), STREAM, OPENED)


# The document.

GOLDEN: dict[str, Packet] = {
    "info": Info(STREAM, OPENED, CODES),
    "data": Data(
        STREAM, 0, 2, 3840, 1920, True, OPENED + 240_000_000, 1.0, np.array([[1], [2047]]), 245
    ),
    "end": End(STREAM, 3, (3,)),
    "credit": Credit(STREAM, 2, 16),
    "bye": Bye(STREAM),
}


def golden_bytes() -> dict[str, bytes]:
    text = (Path(__file__).parents[3] / "docs" / "io" / "wire.md").read_text()
    section = text.partition("## Golden packets")[2]
    blocks = re.findall(r"^### (\w+)\n.*?^```\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return {name: bytes.fromhex(block) for name, block in blocks}


def test_the_document_has_every_kind() -> None:
    assert set(golden_bytes()) == set(GOLDEN)


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_packets(name: str) -> None:
    packet, meant = golden_bytes()[name], GOLDEN[name]
    got = decode(packet)
    if isinstance(meant, Data):
        assert isinstance(got, Data) and np.array_equal(got.data, meant.data)
        for field in ("stream", "track", "seq", "pts", "duration", "discontinuity", "scale"):
            assert getattr(got, field) == getattr(meant, field)
        assert got.sent_ms == meant.sent_ms
        frame = Frame(meant.data, meant.pts, meant.duration, meant.seq, meant.discontinuity)
        made = encode_frame(frame, CODES, STREAM, meant.arrived_unix_ns, sent_ms=meant.sent_ms)
    else:
        assert got == meant
        made = {
            Info: lambda m: encode_info(m.info, m.stream, m.opened_unix_ns),
            End: encode_end,
            Credit: encode_credit,
            Bye: encode_bye,
        }[type(meant)](meant)
    assert made == packet


# Versions.


def test_another_major_version_names_both() -> None:
    with pytest.raises(WireError, match=r"version 2\.7; this streamenc reads version 1\.4"):
        decode(b"SE\x02\x07?whatever comes")


@pytest.mark.parametrize("name", VALID)
def test_a_newer_minor_version_appends_fields(name: str) -> None:
    old = VALID[name]
    newer = packed(old[4:5], [*body(old), {"new": [1]}, None], version=b"\x01\x09")
    before, after = decode(old), decode(newer)
    if isinstance(before, Data):
        assert isinstance(after, Data) and np.array_equal(before.data, after.data)
    else:
        assert before == after


def test_what_came_with_version_1_1_may_be_missing() -> None:
    """A publisher of version 1.0 says neither when it sent a frame, nor why it ended."""
    data = decode(packed(b"D", body(VALID["data"])[:11]))
    assert isinstance(data, Data) and data.sent_ms is None and data.seq == 2
    assert decode(packed(b"E", body(VALID["end"])[:3])) == End(STREAM, 3, (3,), broken="")


@pytest.mark.parametrize(
    ("reason", "read"),
    [
        ("the microphone was unplugged", "the microphone was unplugged"),
        ("two\nlines \x1b[31m", "two lines  [31m"),
        ("\ud800 half a pair", "  half a pair"),
        ("\N{SNOWMAN}" * 200, "\N{SNOWMAN}" * 85),
    ],
)
def test_an_end_may_say_that_it_came_too_early(reason: str, read: str) -> None:
    packet = encode_end(End(STREAM, 3, (2**63 - 1,) * 64, reason))
    assert len(packet) <= MAX_CONTROL_BYTES
    assert decode(packet) == End(STREAM, 3, (2**63 - 1,) * 64, read)


def test_unknown_flags_are_ignored_and_unknown_kinds_refused() -> None:
    fields = body(VALID["data"])
    fields[5] = 0xF0
    got = decode(packed(b"D", fields))
    assert isinstance(got, Data) and not got.discontinuity
    with pytest.raises(WireError, match=r"1\.3 and unknown kind b'Z'"):
        decode(b"SE\x01\x03Z\x90")


# Hostile bytes.


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("data", 0, -1),
        ("data", 0, 2**63),
        ("data", 1, 64),
        ("data", 2, 2**63),
        ("data", 2, "2"),
        ("data", 3, 2**63),
        ("data", 4, -1),
        ("data", 6, -1),
        ("data", 7, float("nan")),
        ("data", 7, float("inf")),
        ("data", 8, "O"),
        ("data", 8, "u8"),
        ("data", 8, "f4,f4"),
        ("data", 9, [8, 2]),
        ("data", 9, [-8, -1]),
        ("data", 9, [1] * 9 + [8]),
        ("data", 9, [0, 2**31 - 1, 2**31 - 1, 2**31 - 1]),
        ("data", 9, [2**31 - 1] * 8),
        ("data", 9, [None, 8]),
        ("data", 9, 8),
        ("data", 10, b"\0" * 15),
        ("data", 10, "text"),
        ("info", 2, ["smell", 1, 1, 1, 1, [1], "u2", "", 1]),
        ("info", 2, ["codes", 0, 1, 1, 1, [1], "u2", "", 1]),
        ("info", 2, ["codes", 1, 0, 1, 1, [1], "u2", "", 1]),
        ("info", 2, ["codes", 1, 1, 0, 1, [1], "u2", "", 1]),
        ("info", 2, ["codes", 1, 1, 1, 2**64 - 1, [1], "u2", "", 1]),
        ("info", 2, ["codes", 1, 1, 1, 1, [1] * 9, "u2", "", 1]),
        ("info", 2, ["codes", 1, 1, 1, 1, [1], "i8", "", 1]),
        ("info", 2, ["codes", 1, 1, 1, 1, [1], "u2", "m" * 1025, 1]),
        ("info", 2, ["mux", 1, 1, 1, 1, [1], "u2", "", 1]),
        ("info", 3, [body(VALID["info"])[2]]),
        ("mux", 3, [body(VALID["mux"])[2]]),
        ("mux", 3, [body(VALID["info"])[2]] * 65),
        ("end", 2, [1] * 65),
        ("end", 2, [-1]),
        ("credit", 1, -1),
        ("bye", 0, None),
    ],
)
def test_a_field_out_of_range(name: str, index: int, value: object) -> None:
    fields = body(VALID[name])
    fields[index] = value
    with pytest.raises(WireError):
        decode(packed(VALID[name][4:5], fields))


@pytest.mark.parametrize("name", VALID)
def test_truncated_and_prolonged(name: str) -> None:
    packet = VALID[name]
    for n in range(len(packet)):
        with pytest.raises(WireError):
            decode(packet[:n])
    with pytest.raises(WireError, match="trailing"):
        decode(packet + b"\0")


def test_too_large() -> None:
    for kind, limit in (
        (b"D", MAX_PACKET_BYTES),
        (b"I", MAX_INFO_BYTES),
        (b"E", MAX_CONTROL_BYTES),
        (b"C", MAX_CONTROL_BYTES),
    ):
        with pytest.raises(WireError, match=f"at most {limit}"):
            decode(b"SE\x01\x00" + kind + bytes(limit))


HUGE = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
]
BOMBS = [
    *(b"\x91" * 10_000 + h for h in HUGE),
    b"\x9b" + b"\x91" * 1_000_000,
    b"\x9f" + body(VALID["data"])[0].to_bytes(9, "big") + b"\x91" * 1_000_000,
    b"\x81\x01" * 10_000,
    *HUGE,
]


@pytest.mark.parametrize("kind", [b"I", b"D", b"E", b"C", b"B"])
def test_bombs_take_no_memory(kind: bytes) -> None:
    fields = [msgspec.msgpack.encode(field) for field in body(VALID["data"])]
    # A bomb in the place of each field, and after the last one, where a newer version may add.
    places = [b"".join(fields[:i]) for i in range(len(fields) + 1)]
    tracemalloc.start()
    try:
        for bomb in BOMBS:
            for place in places:
                with pytest.raises(WireError):
                    decode(b"SE\x01\x00" + kind + b"\x9c" + place + bomb)
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()


def harmless(packet: bytes) -> None:
    """It decodes to something that fits or not, or raises WireError; nothing else happens."""
    try:
        got = decode(packet)
        if isinstance(got, Data):
            assert got.data.nbytes <= len(packet)
            for info in (CODES, MUX):
                fitted(got, info)
        elif isinstance(got, Info):
            str(got.info)
    except WireError:
        pass


@given(st.binary(max_size=200), st.sampled_from([b"", b"SE", *(p[:5] for p in VALID.values())]))
@settings(max_examples=examples(500, fast=60), deadline=None)
def test_random_bytes(junk: bytes, head: bytes) -> None:
    harmless(head + junk)


@given(
    st.sampled_from(list(VALID.values())),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 40),
    st.binary(max_size=10),
)
@settings(max_examples=examples(1000, fast=100), deadline=None)
def test_mutated_packets(
    packet: bytes, changes: list[tuple[int, int]], cut: int, spliced: bytes
) -> None:
    bad = bytearray(packet)
    for place, value in changes:
        bad[place % len(bad)] = value
    bad[cut:cut] = spliced
    harmless(bytes(bad))


SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary()
TREES = st.recursive(
    SCALARS | st.text(max_size=5), lambda t: st.lists(t, max_size=4), max_leaves=20
)


@given(
    st.sampled_from(list(VALID.values())),
    st.lists(st.tuples(st.integers(0, 10), TREES), max_size=3),
)
@settings(max_examples=examples(500, fast=60), deadline=None)
def test_packets_with_strange_fields(packet: bytes, changes: list[tuple[int, object]]) -> None:
    fields = body(packet)
    for place, value in changes:
        fields[place % len(fields)] = value
    harmless(packed(packet[4:5], fields))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (codes(9, 1), "uint16 .9, 1."),
        (codes(8), "uint16 .8,."),
        (codes(8, 1, dtype="uint8"), "uint8"),
        (np.full((8, 1), 2048, np.uint16), "code 2048 for books of 2048"),
    ],
)
def test_data_that_break_the_infos_promise(data: np.ndarray, message: str) -> None:
    got = decode(VALID["data"])
    assert isinstance(got, Data)
    fitted(got, CODES)
    fitted(replace(got, data=codes(1, 1)), CODES)  # fewer codebooks are fine
    with pytest.raises(WireError, match=message):
        fitted(replace(got, data=data), CODES)
    with pytest.raises(WireError, match="track 2"):
        fitted(replace(got, track=2), MUX)


def test_bfloat16_takes_two_bytes_and_comes_back() -> None:
    info = replace(FEATURES, dtype="bfloat16")
    described = decode(encode_info(info, STREAM, OPENED))
    assert isinstance(described, Info) and described.info == info
    data = np.random.default_rng(0).standard_normal((80, 3)).astype("float32")
    packet = encode_frame(Frame(data, 0, 3, 0), info, STREAM)
    assert body(packet)[8] == "b2" and len(body(packet)[10]) == 2 * data.size
    got = decode(packet)
    assert isinstance(got, Data)
    fitted(got, info)
    assert np.array_equal(got.data, round_to_bfloat16(data))
    with pytest.raises(WireError):
        fitted(got, FEATURES)
