"""Bounds, policies and ends of a stream on a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.io.network.websocket.livemessages import (
    Close,
    Dropped,
    Error,
    GoAway,
    Mark,
    Open,
    Resume,
    TakeSnapshot,
)
from streamenc.io.network.wire import Credit, Data, decode, encode_credit, encode_samples
from streamenc.serve.limits import Limits
from streamenc.serve.service import Service
from streamenc.serve.streams.attachment import Attachment
from streamenc.serve.streams.sessionstore import FolderStore
from tests.serve.conftest import Served, nano, until
from tests.serve.test_streamsocket import offline, sent_in_pieces, sound
from tests.support.rawsocket import RawSocket

SMALL = Limits(max_queued_bytes=64 * 1024, resume_seconds=5.0)


def test_a_full_server_says_so_before_the_upgrade(serve: Callable[..., Served]) -> None:
    served = serve(limits=Limits(sessions=1))

    async def go() -> None:
        async with RawSocket(served.url) as first, RawSocket(served.url) as second:
            await first.open(model="nano")
            with pytest.raises(InvalidStatus) as refused:
                await second.connect()
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["Retry-After"] == "1"
            assert b'"full"' in (refused.value.response.body or b"")
            await first.leave(abort=True)
            await first.resume()
            await first.close()
            await second.open(model="nano")
            await second.close()

    asyncio.run(go())


def test_a_client_that_does_not_take_what_comes_holds_up_itself_alone(
    serve: Callable[..., Served],
) -> None:
    served = serve(limits=SMALL)

    async def go() -> None:
        async with RawSocket(served.url) as slow, RawSocket(served.url) as quick:
            slow.credited = False
            await slow.open(model="nano", format="f32", window=2)
            await quick.open(model="nano", format="f32", window=64)
            samples = sound(2.0)
            sending = asyncio.create_task(sent_in_pieces(slow, np.tile(samples, 5)))
            await sent_in_pieces(quick, samples)
            await quick.close()
            np.testing.assert_array_equal(quick.codes(), offline(samples))
            assert len(slow.data) == 2
            (stream,) = served.service.streams.values()
            assert len(stream._inbox) * 4000 < 4 * 64 * 1024
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await slow.leave(abort=True)  # of a full connection nobody reads a farewell

    asyncio.run(go())


def test_events_that_nobody_takes_hold_up_who_asks_for_them(serve: Callable[..., Served]) -> None:
    served = serve(limits=SMALL)

    async def go() -> None:
        service = served.service
        stream = await service.open(Open("nano", format="f32", policy="drop_oldest", window=2))
        attachment, _ = stream.attach()  # and nobody sends what it gives

        async def asking() -> None:
            for number in range(2000):
                await stream.put(Mark("m" * 200) if number % 10 else TakeSnapshot())

        sending = asyncio.create_task(asking())
        await asyncio.wait((sending,), timeout=1.5)
        assert not sending.done() and stream.outbox.full
        assert stream.outbox._bytes < 2 * SMALL.max_queued_bytes
        assert stream._inbox._bytes <= SMALL.max_queued_bytes
        assert len(attachment._notices) < 4
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await service.forget(stream)

    served.call(go())


def test_dropped_output_is_told_and_flagged(serve: Callable[..., Served]) -> None:
    served = serve(limits=SMALL)

    async def go() -> None:
        async with RawSocket(served.url) as socket:
            socket.credited = False
            await socket.open(
                model="mel", format="f32", window=4, policy="drop_oldest", dtype="float32"
            )
            (stream,) = served.service.streams.values()
            for part in np.split(sound(3.0), 30):  # as fast as it is taken
                await sent_in_pieces(socket, part)
                await until(lambda: stream._done_pts == socket.pts)
            assert stream.outbox.dropped
            socket.credited, socket.window = True, 10_000
            await socket.send(encode_credit(Credit(0, socket.count, 10_000)))
            closed = await socket.close()
            told = [m for m in socket.messages if isinstance(m, Dropped) and m.where == "output"]
            assert sum(m.packets for m in told) == told[-1].total == stream.outbox.dropped
            assert len(socket.data) + told[-1].total == closed.packets
            after = socket.messages[socket.messages.index(told[-1]) + 1]
            assert after.discontinuity and len(told) == 1
            jumps = [b.seq - a.seq - 1 for a, b in zip(socket.data, socket.data[1:], strict=False)]
            assert sum(jumps) == told[-1].total

    asyncio.run(go())


def test_what_an_old_connection_had_sent_is_nothing(served: Served) -> None:
    """Who resumes sends again, in pieces of other sizes: both together would be one in pieces of
    either."""
    samples = sound(0.5)[None]

    async def go() -> None:
        service = served.service
        stream = await service.open(Open("nano", format="f32"))

        async def put(sender: Attachment, seq: int, begin: int, end: int) -> None:
            data = decode(encode_samples(samples[:, begin:end], seq, begin))
            assert isinstance(data, Data)
            await stream.put(data, sender)

        old, _ = stream.attach()
        await put(old, 0, 0, 1000)
        new, told = stream.attach()
        assert (told.next_seq, told.next_pts) == (1, 1000)
        await put(old, 1, 1000, 1500)
        old.credit(0, 1)
        assert stream.outbox.window == 0
        await put(new, 1, 1000, 4000)
        await put(new, 2, 4000, 6000)
        await put(old, 3, 6000, 7000)
        assert (stream._inbox.next_seq, stream._inbox.next_pts) == (3, 6000)
        new.detach()
        await put(new, 3, 6000, 7000)
        assert stream._inbox.next_seq == 3
        await service.forget(stream)

    served.call(go())


def test_the_policy_close_closes(serve: Callable[..., Served]) -> None:
    served = serve(limits=SMALL)

    async def go() -> None:
        async with RawSocket(served.url) as socket:
            socket.credited = False
            await socket.open(model="mel", format="f32", window=1, policy="close")
            with pytest.raises(ConnectionClosed):
                await sent_in_pieces(socket, sound(20.0))
                await asyncio.sleep(5)
                await sent_in_pieces(socket, sound(20.0))
            assert (await socket.until(Error)).code == "too_slow"

    asyncio.run(go())


def test_nobody_waits_for_ever(serve: Callable[..., Served]) -> None:
    limits = Limits(idle_seconds=0.3, handshake_seconds=0.3, resume_seconds=0.5, max_seconds=2.0)
    served = serve(limits=limits)

    async def go() -> None:
        async with RawSocket(served.url) as silent, RawSocket(served.url) as idle:
            await silent.connect()
            await idle.open(model="nano")
            assert '"idle"' in await silent._text()
            assert (await idle.until(Error)).code == "idle"
            await idle.leave()
            await until(lambda: not served.service.streams)
            with pytest.raises(AssertionError, match="expired"):
                await idle.resume()
            await until(lambda: served.engine.sessions == 0)

    asyncio.run(go())


def test_a_stream_that_is_too_old_is_ended(serve: Callable[..., Served]) -> None:
    served = serve(limits=Limits(max_seconds=0.5))

    async def go() -> None:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano")
            assert (await socket.until(Error)).code == "too_long"

    asyncio.run(go())


def test_a_server_that_ends_tells_and_keeps(serve: Callable[..., Served]) -> None:
    first, second = serve(), serve()
    samples = sound(2.0)

    async def go() -> RawSocket:
        async with RawSocket(first.url) as socket:
            await socket.open(model="nano", format="f32", window=64)
            await sent_in_pieces(socket, samples[:20000])
            draining = asyncio.run_coroutine_threadsafe(first.service.drain(0.5), first.loop)
            assert (await socket.until(GoAway)).seconds == 0.5
            with pytest.raises(InvalidStatus):
                await RawSocket(first.url).connect()
            assert (await socket.until(Error)).code == "ending"
            await asyncio.wrap_future(draining)
            assert not first.service.streams
            socket.url = second.url
            resumed = await socket.resume()
            assert resumed.exact and resumed.source == "store"
            assert resumed.next_pts == 20000, "all that came was taken before it ended"
            socket.seq, socket.pts = resumed.next_seq, resumed.next_pts
            await sent_in_pieces(socket, samples[20000:])
            await socket.close()
            return socket

    socket = asyncio.run(go())
    np.testing.assert_array_equal(socket.codes(), offline(samples))


def test_a_stream_goes_on_after_its_engine_died(tmp_path: Path) -> None:
    """The engine of the streams ends in the middle, and another one takes its place."""
    samples, address = sound(2.0), f"ipc://{tmp_path}/engine"

    async def fed(stream: Any, start: int, seq: int) -> None:
        for at in range(start, len(samples), 1000):
            packet = decode(encode_samples(samples[None, at : at + 1000], seq, at))
            await stream.put(packet)
            seq += 1

    async def go() -> list[Any]:
        codecs = {"nano": nano()}
        frames: list[Any] = []
        async with Service([address], Limits(), store=FolderStore(tmp_path / "store")) as service:
            with Engine() as engine, EngineServer(engine, codecs, address):
                await until(lambda: service.ready)
                stream = await service.open(Open("nano", format="f32", window=500))
                attachment, _ = stream.attach(window=500)
                await fed(stream, 0, 0)
                async for item in attachment:
                    if hasattr(item, "n"):
                        frames.append(item)
                    if len(frames) == 20:
                        break
                stream.checkpoint()
                await until(lambda: not stream._keeper.changed)
            async for item in attachment:  # what was on its way
                if hasattr(item, "n"):
                    frames.append(item)
            assert attachment.ended == "engine_gone"
            attachment.detach()
            with Engine() as engine, EngineServer(engine, codecs, address):
                await until(lambda: service.ready)
                token = stream.token
                stream = await service.resume(Resume(token, len(frames)))
                attachment, told = stream.attach(received=len(frames), window=500)
                assert told.source == "store" and told.exact
                await fed(stream, told.next_pts, told.next_seq)
                await stream.put(Close())
                async for item in attachment:
                    if hasattr(item, "n"):
                        frames.append(item)
                await service.forget(stream)
        return frames

    frames = asyncio.run(go())
    assert [sent.n for sent in frames] == list(range(len(frames)))
    packets = [decode(sent.packet) for sent in frames if isinstance(sent.packet, bytes)]
    codes = np.concatenate([packet.data for packet in packets], axis=1)
    np.testing.assert_array_equal(codes, offline(samples))
