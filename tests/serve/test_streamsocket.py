"""A stream over a WebSocket: what comes out is what the model makes of the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamenc.client import connect
from streamenc.errors import UsageError
from streamenc.io.network.websocket.livemessages import (
    Ack,
    Close,
    Closed,
    Error,
    Flush,
    Flushed,
    Mark,
    Marked,
    Set,
    SnapshotTaken,
    TakeSnapshot,
    WasSet,
)
from streamenc.serve.guard import Guard
from streamenc.serve.keyring import Keyring, keys_of
from streamenc.serve.limits import Limits
from tests.serve.conftest import Served, nano, until
from tests.support.rawsocket import RawSocket

RATE = 24000


def sound(seconds: float = 1.0, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(int(RATE * seconds)) * 0.1).astype(np.float32)


def offline(samples: np.ndarray[Any, Any], codebooks: int | None = None) -> np.ndarray[Any, Any]:
    """What one stream gives, hop by hop: of many hops at once, a last bit may be another."""
    with nano().stream(codebooks=codebooks) as stream:
        return np.concatenate([stream.push(samples[None]), stream.flush()], axis=2)[0]


async def sent_in_pieces(socket: RawSocket, samples: np.ndarray[Any, Any], seed: int = 1) -> None:
    assert socket.opened is not None
    most = min(2000, socket.opened.max_message_bytes // 4)
    rng, at = np.random.default_rng(seed), 0
    while at < len(samples):
        size = int(rng.integers(1, most))
        await socket.sound(samples[at : at + size])
        at += size


def test_codes_equal_those_of_the_whole(served: Served) -> None:
    samples = sound()

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            opened = await socket.open(model="nano", format="f32", window=64)
            assert opened.hop > 0 and opened.exact_resume
            await sent_in_pieces(socket, samples)
            closed = await socket.close()
            assert closed.packets == len(socket.data)
            return socket

    socket = asyncio.run(go())
    np.testing.assert_array_equal(socket.codes(), offline(samples))
    assert [d.seq for d in socket.data] == list(range(len(socket.data)))
    ends = [d.pts + d.duration for d in socket.data]
    assert [d.pts for d in socket.data] == [0, *ends[:-1]] and ends[-1] == len(samples)


def test_echo_gives_the_sound_back(served: Served) -> None:
    samples = sound()

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", direction="echo", format="f32")
            await sent_in_pieces(socket, samples)
            await socket.close()
            return socket

    socket = asyncio.run(go())
    codec = nano()
    codes = codec.encode(samples[None])
    np.testing.assert_array_equal(socket.codes(0), codes.numpy()[0])
    heard = codec.decode(codes)[0].numpy()
    assert socket.codes(1).shape == (1, len(samples))
    np.testing.assert_allclose(socket.codes(1), heard[:, : len(samples)], atol=1e-5)


def test_marks_flushes_and_settings_come_in_order(served: Served) -> None:
    samples = sound()

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="f32")
            await socket.sound(samples[:12000])
            await socket.say(Mark("half"))
            await socket.say(Flush())
            await socket.sound(samples[12000:18000])
            await socket.say(Set(codebooks=2))
            await socket.sound(samples[18000:])
            await socket.close()
            return socket

    socket = asyncio.run(go())
    kinds = [type(m).__name__ for m in socket.messages]
    assert kinds.index("Marked") < kinds.index("Flushed") < kinds.index("WasSet")
    marked = next(m for m in socket.messages if isinstance(m, Marked))
    assert (marked.id, marked.pts) == ("half", 12000)
    flushed = next(i for i, m in enumerate(socket.messages) if isinstance(m, Flushed))
    first = [m.data for m in socket.messages[:flushed] if hasattr(m, "data")]
    np.testing.assert_array_equal(np.concatenate(first, axis=1), offline(samples[:12000]))
    later = [m for m in socket.messages[flushed:] if hasattr(m, "data")]
    assert later[0].discontinuity and not later[1].discontinuity
    was_set = next(i for i, m in enumerate(socket.messages) if isinstance(m, WasSet))
    assert {m.data.shape[0] for m in socket.messages[was_set:] if hasattr(m, "data")} == {2}


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_goes_on_after_each_broken_connection(served: Served, seed: int) -> None:
    samples = sound(2.0)

    async def go() -> RawSocket:
        rng = np.random.default_rng(seed)
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="f32", window=32)
            at = 0
            for _ in range(6):
                for _ in range(int(rng.integers(1, 8))):
                    size = int(rng.integers(1, 3000))
                    await socket.sound(samples[at : at + size])
                    at = min(at + size, len(samples))
                await asyncio.sleep(float(rng.uniform(0, 0.02)))
                await socket.leave(abort=True)
                resumed = await socket.resume()
                assert resumed.exact and resumed.source == "memory"
                socket.seq, socket.pts = resumed.next_seq, resumed.next_pts
                at = resumed.next_pts
            await sent_in_pieces(socket, samples[at:])
            await socket.close()
            return socket

    socket = asyncio.run(go())
    np.testing.assert_array_equal(socket.codes(), offline(samples))


def test_another_server_goes_on_from_the_store(serve: Callable[..., Served]) -> None:
    often = Limits(checkpoint_seconds=0.2)
    first, second = serve(worker="0", limits=often), serve(worker="1", limits=often)
    samples = sound(2.0)

    async def go() -> RawSocket:
        async with RawSocket(first.url) as socket:
            await socket.open(model="nano", format="f32", window=64)
            await sent_in_pieces(socket, samples[:20000])
            await socket.leave(abort=True)
            # The first server still has it: who comes last has it.
            socket.url = second.url
            await asyncio.sleep(0.2)
            resumed = await socket.resume()
            assert resumed.exact and resumed.source == "store"
            assert resumed.token.startswith("1.")
            socket.seq, socket.pts = resumed.next_seq, resumed.next_pts
            await sent_in_pieces(socket, samples[resumed.next_pts : 30000])
            await socket.until(Ack)
            await sent_in_pieces(socket, samples[30000:])
            await socket.close()
            return socket

    socket = asyncio.run(go())
    np.testing.assert_array_equal(socket.codes(), offline(samples))


def test_a_snapshot_goes_on_elsewhere(serve: Callable[..., Served]) -> None:
    first, second = serve(), serve()
    samples = sound(2.0)

    async def go() -> tuple[RawSocket, RawSocket]:
        async with RawSocket(first.url) as socket, RawSocket(second.url) as other:
            await socket.open(model="nano", format="f32")
            await sent_in_pieces(socket, samples[:20000])
            await socket.say(TakeSnapshot())
            taken = await socket.until(SnapshotTaken)
            assert taken.bytes == len(socket.snapshot) and taken.pts == 20000
            await other.connect()
            await other.open(model="nano", format="f32", snapshot=socket.snapshot)
            other.seq, other.pts = taken.seq, taken.pts
            await sent_in_pieces(other, samples[20000:])
            await other.close()
            return socket, other

    socket, other = asyncio.run(go())
    codes = np.concatenate([socket.codes(), other.codes()], axis=1)
    np.testing.assert_array_equal(codes, offline(samples))


def test_what_does_not_fit_changes_nothing(served: Served) -> None:
    samples = sound()

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="f32")
            await socket.sound(samples[:5000])
            wrong = np.full(100, np.nan, np.float32)
            await socket.sound(wrong)
            error = await socket.until(Error)
            assert error.code == "bad_packet" and error.seq == 1 and "finite" in error.message
            socket.seq, socket.pts = 1, 5000
            await sent_in_pieces(socket, samples[5000:])
            await socket.close()
            return socket

    socket = asyncio.run(go())
    np.testing.assert_array_equal(socket.codes(), offline(samples))


def test_a_stream_is_kept_until_its_end_was_heard(serve: Callable[..., Served]) -> None:
    served = serve(limits=Limits(resume_seconds=1.5))

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="f32", window=64)
            await sent_in_pieces(socket, sound())
            await socket.say(Close())
            await socket.leave(abort=True)
            await socket.resume()
            await socket.until(Closed)
            await until(lambda: not served.service.streams)
            # All was sent, and the last of it was lost on its way.
            del socket.messages[-5:]
            socket.count -= 5
            await socket.leave(abort=True)
            await socket.resume()
            await socket.until(Closed)
            await socket.leave()
            await until(lambda: not served.service._closed)
            with pytest.raises(AssertionError, match="expired"):
                await socket.resume()
            return socket

    socket = asyncio.run(go())
    np.testing.assert_array_equal(socket.codes(), offline(sound()))
    (count,) = [number for _, number in served.service.meter.counts().gauges["sessions"]]
    assert count == 0 and not served.service.streams


def test_streams_of_a_key(serve: Callable[..., Served]) -> None:
    """As many as it may have, at any moment, and those of others beside."""
    keys = Keyring(keys_of([f"{name} {name}-0123456789abcdef" for name in ("robot", "other")], ""))
    served = serve(limits=Limits(sessions_per_key=2), guard=Guard(keys))

    async def opened(name: str) -> str:
        """How it went, for a stream that then stays."""
        socket = RawSocket(served.url, Authorization=f"Bearer {name}-0123456789abcdef")
        try:
            await socket.open(model="nano", format="f32")
        except AssertionError as error:
            assert "this key has its 2 streams" in str(error)
            return "full"
        finally:
            await socket.leave()
        return "opened"

    async def go() -> list[str]:
        return await asyncio.gather(*map(opened, ["robot"] * 4 + ["other"]))

    went = asyncio.run(go())
    assert sorted(went[:4]) == ["full", "full", "opened", "opened"] and went[4] == "opened"
    # Without a client they are there still.
    assert (served.service.streams_of("robot"), served.service.streams_of("other")) == (2, 1)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"model": "none"}, "unknown_model"),
        ({"model": "nano", "codebooks": 99}, "bad_open"),
        ({"model": "nano", "dtype": "float16"}, "bad_open"),
    ],
)
def test_what_is_wrong_with_an_open(
    serve: Callable[..., Served], asked: dict[str, Any], code: str
) -> None:
    served = serve()

    async def go() -> None:
        socket = RawSocket(served.url)
        try:
            with pytest.raises(AssertionError, match=code):
                await socket.open(format="f32", **asked)
        finally:
            await socket.leave()

    asyncio.run(go())


def test_who_is_refused_is_told_in_words(serve: Callable[..., Served]) -> None:
    served = serve(guard=Guard(Keyring(keys_of(["robot robot-0123456789abcdef"], ""))))

    async def go() -> None:
        async with connect(served.url, model="nano", key="another-0123456789abcdef"):
            pass

    with pytest.raises(UsageError, match=r"\(401\): this key is none of this server's"):
        asyncio.run(go())
