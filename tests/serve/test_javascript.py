"""The client in JavaScript, in Node, against a server that breaks connections wherever it can."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamenc.io.network import wire
from tests.serve.conftest import Served, nano
from tests.serve.fakeserver import HOP, FakeServer, codes_of, fake_server

HERE = Path(__file__).parent
NODE = shutil.which("node")


def node_version() -> int:
    """The major version; 0 where there is none."""
    if NODE is None:
        return 0
    said = subprocess.run([NODE, "--version"], capture_output=True, text=True, timeout=20).stdout
    return int(said.removeprefix("v").split(".")[0])


VERSION = node_version()
# Node 20 has WebSockets, and hides them.
FLAGS = ["--experimental-websocket", "--no-warnings"] if VERSION < 22 else []
pytestmark = pytest.mark.skipif(VERSION < 20, reason=f"needs Node 20 or newer; found {VERSION}")


async def node(scenario: str, address: str = "", **options: Any) -> Any:
    """What javascript.mjs printed."""
    run = await asyncio.create_subprocess_exec(
        *(NODE, *FLAGS, HERE / "javascript.mjs", scenario, address, json.dumps(options)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(run.communicate(), 60)
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    assert run.returncode == 0, errors.decode()
    return json.loads(out)


def with_fake(scenario: str, **options: Any) -> tuple[Any, FakeServer]:
    async def run() -> tuple[Any, FakeServer]:
        async with fake_server() as (address, fake):
            return await node(scenario, address, **options), fake

    return asyncio.run(run())


def samples(length: int) -> np.ndarray:
    """As javascript.mjs makes them."""
    return (np.arange(length, dtype=np.int64) * 7919 % 2003 - 1001).astype(np.int16)


def joined(frames: list[dict[str, Any]], track: int = 0) -> np.ndarray:
    """(rows, frames) of all packets of a track, in as many rows as the last one has."""
    packets = [np.array(f["data"]).reshape(f["shape"]) for f in frames if f["track"] == track]
    rows = min(len(packet) for packet in packets)
    return np.concatenate([packet[:rows] for packet in packets], axis=1)


LENGTHS = [480, 100, 1300, 7, 481, 960, 300]
TOTAL = sum(LENGTHS)


def check_session(got: dict[str, Any], *, echo: bool = False) -> None:
    """Nothing is missing, nothing twice, and all of it in order."""
    frames = got["frames"]
    expected = codes_of(samples(TOTAL))
    assert np.array_equal(joined(frames), expected[:2])
    codes = [frame for frame in frames if frame["track"] == 0]
    assert [frame["seq"] for frame in codes] == list(range(TOTAL // HOP))
    assert [frame["pts"] for frame in codes] == [HOP * k for k in range(TOTAL // HOP)]
    assert [frame["seconds"] for frame in codes] == pytest.approx(
        [0.01 * k for k in range(TOTAL // HOP)]
    )
    # 3 hops came before `set`, whatever happened to the connection.
    assert [frame["shape"][0] for frame in codes] == [4, 4, 4] + [2] * (TOTAL // HOP - 3)
    assert not any(frame["discontinuity"] for frame in frames)
    assert got["mark"] == TOTAL
    assert got["closed"]["packets"] == TOTAL // HOP
    assert got["state"] == "closed"
    if echo:
        heard = joined(frames, track=1)[0] * 32768
        assert np.array_equal(heard, samples(TOTAL)[: heard.size])
        assert heard.size == TOTAL // HOP * HOP


@pytest.mark.parametrize(("direction", "store"), [("encode", True), ("echo", False)])
def test_a_connection_that_breaks_anywhere_is_resumed(direction: str, store: bool) -> None:
    points = 40 if direction == "encode" else 48
    breaks = [str(k) for k in range(1, points)] + ["3,4,5,6", "9,20,31", "7,8,30,33,36"]
    queries = [f"break={where}" + "&store" * store for where in breaks]
    got, fake = with_fake(
        "sessions", queries=["", *queries], lengths=LENGTHS, open={"direction": direction}
    )
    assert len(got) == len(queries) + 1
    for one in got:
        check_session(one, echo=direction == "echo")
    assert got[0]["statistics"]["resumed"] == 0
    # The last points lie behind the end of a session, and some cuts are those of resumptions.
    assert fake.cut >= points
    assert sum(one["statistics"]["resumed"] for one in got) > 0.8 * fake.cut


def test_what_comes_twice_is_given_once() -> None:
    queries = [f"break={where}&again" for where in ("9", "14,20", "22,30")]
    got, _ = with_fake("sessions", queries=queries, lengths=LENGTHS, open={"direction": "echo"})
    for one in got:
        check_session(one, echo=True)


def test_a_server_that_refuses_says_why() -> None:
    (unknown, unreachable), _ = with_fake("refused")
    assert (unknown["name"], unknown["code"]) == ("StreamError", "unknown_model")
    assert unreachable["code"] == "unreachable"
    assert "127.0.0.1:9" in unreachable["message"]


def test_a_packet_that_was_refused_is_left_out() -> None:
    got, _ = with_fake("bad")
    (error,) = got["errors"]
    assert (error["code"], error["seq"]) == ("bad_packet", 1)
    assert np.array_equal(joined(got["frames"]), np.tile(codes_of(samples(480)), 3))
    assert got["statistics"]["refused"] == 1


def test_live_input_beyond_the_buffer_is_dropped_and_counted() -> None:
    got, fake = with_fake("bounds")
    # 8000 bytes are 7 packets of 480 samples, of which some may have been acknowledged by then.
    assert got["taken"] == [True] * 7 + [False] * 5
    assert got["statistics"]["droppedHere"] == 5
    assert len(got["frames"]) == 7 + 12
    assert got["late"]["code"] == "closed"
    assert got["offered"] is False
    assert fake.streams[0].state.pts == 480 * 24  # the gap counts


def test_what_is_never_acknowledged_makes_room_once_the_server_is_through_with_it() -> None:
    got, _ = with_fake("forgetful")
    assert np.array_equal(joined(got["frames"]), np.tile(codes_of(samples(480)), 40))
    assert got["statistics"]["resumed"] == 1
    assert 10_000 < got["statistics"]["unacknowledgedBytes"] <= 20_000


def test_a_reader_that_stops_holds_the_server_up() -> None:
    got, _ = with_fake("slow")
    assert got["unread"] == 4
    assert np.array_equal(joined(got["frames"]), np.tile(codes_of(samples(480)), 20))


def test_a_stream_moves_by_its_snapshot() -> None:
    got, fake = with_fake("move", queries=["", *(f"break={k}" for k in range(1, 8))])
    assert fake.cut == 7
    for moved in got:
        # Where a snapshot went lost with its connection, another one was asked for.
        assert (moved["seq"] in (2, 3), moved["pts"]) == (True, 700)
        both = [*moved["before"], *moved["after"]]
        assert np.array_equal(joined(both), codes_of(samples(1440)))


def test_breaking_the_connection_loses_nothing() -> None:
    got, _ = with_fake("broken")
    assert got["events"] == ["disconnected", "resumed", "closed", "ended"]
    assert np.array_equal(joined(got["frames"]), codes_of(samples(1440)))


def test_the_example_prints_tokens() -> None:
    got, _ = with_fake("example", model="fake", samples=1000)
    assert np.array_equal(np.array(got).T, codes_of(samples(1000)))


def test_codes_are_those_of_the_engine(served: Served) -> None:
    lengths = [320, 1, 4000, 1234, 320, 777, 2500, 31, 5000, 640, 1177]
    address = served.url.removeprefix("ws://")
    got = asyncio.run(node("engine", address, model="nano", lengths=lengths))
    floats = samples(sum(lengths)).astype(np.float32) / np.float32(32768)
    codes = nano().encode(floats[None])
    assert np.array_equal(joined(got["frames"]), codes.numpy()[0])
    heard = nano().decode(codes)[0].numpy()[:, : floats.size]
    np.testing.assert_allclose(joined(got["frames"], track=1), heard, atol=1e-5)
    assert got["statistics"]["resumed"] == 3
    assert got["taken"] > 1000


def golden(name: str) -> str:
    """A packet of docs/io/wire.md, in hexadecimal."""
    text = (HERE.parents[1] / "docs/io/wire.md").read_text(encoding="utf-8")
    section = text.partition("## Golden packets")[2].partition(f"### {name}\n")[2]
    return "".join(section.split("```")[1].split())


def test_packets_are_read_and_made_as_documented() -> None:
    features = np.array([[1.5, -2.0, np.inf]], np.float32)
    info = wire.StreamInfo(
        *("features", wire.Fraction(1, 50), wire.Fraction(50), (1, None)), dtype="float32"
    )

    def of(dtype: str) -> str:
        described = wire.StreamInfo(info.kind, info.time_base, info.rate, info.shape, dtype)
        numbers = features.astype(np.float16) if dtype == "float16" else features
        return wire.encode_frame(wire.Frame(numbers, 0, 3, 1), described, 5).hex()

    names = ("info", "data", "end", "credit")
    packets = [golden(name) for name in names] + [of("float32"), of("float16"), of("bfloat16")]
    data = golden("data")
    broken = [
        data[:-2],
        data + "00",
        data[:4] + "02" + data[6:],
        "00" * 40,
        data[:10] + "dd7fffffff",  # an array of two milliards
        data[:10] + "91" * 600,  # nested
        re.sub("920201", "920202", data),  # a shape that does not fit
        re.sub("a27532", "a26938", data),  # the type i8
        golden("credit") + "c0",
    ]
    got = asyncio.run(node("packets", packets=packets + broken))
    info_packet, frame, end, credit, *numbers = got["read"][: len(packets)]
    assert info_packet["stream"] == str(0x0123456789ABCDEF)
    assert (info_packet["what"], info_packet["codebookSize"]) == ("codes", 2048)
    assert info_packet["tick"] == pytest.approx(1 / 24000)
    assert info_packet["rate"] == 12.5
    assert (frame["data"], frame["shape"], frame["pts"]) == ([1, 2047], [2, 1], 3840)
    assert frame["discontinuity"] is True
    assert end["kind"] == "E"
    assert (credit["received"], credit["window"]) == (2, 16)
    for read in numbers:
        assert read["data"] == [1.5, -2.0, None]  # JSON has no infinity
    for read in got["read"][len(packets) :]:
        assert read["code"] == "bad_packet", read
    made = wire.decode(bytes.fromhex(got["made"]))
    assert isinstance(made, wire.Data)
    assert (made.seq, made.pts, made.duration, made.discontinuity) == (70000, -5, 3, True)
    assert np.array_equal(made.data, np.array([[1, -2, 3]], np.int16))
