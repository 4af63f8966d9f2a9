"""Rooms: one produces, many listen; who comes late, is slow or goes away is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as websocket
from websockets.exceptions import ConnectionClosed, InvalidStatus

import streamenc.client
from streamenc.errors import TransportError
from streamenc.graph.clock import MonotonicClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.websocket.livemessages import (
    SUBPROTOCOL,
    Closed,
    Dropped,
    Error,
    Listen,
    Listening,
    Open,
    Produce,
    Producing,
    encode_message,
    read_from_server,
)
from streamenc.io.network.websocket.rooms.roomsink import RoomSink
from streamenc.io.network.websocket.rooms.roomsource import RoomSource
from streamenc.io.network.wire import Credit, Data, End, Info, decode, encode_samples
from streamenc.serve.limits import Limits
from streamenc.serve.rooms.listener import Listener
from streamenc.serve.rooms.room import Room
from streamenc.serve.rooms.roomsocket import RoomTap
from streamenc.serve.streams.outbox import Sent
from tests.serve.conftest import Served, nano
from tests.support.tcpproxy import TcpProxy

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)


def frame(seq: int, **fields: Any) -> Frame:
    data = np.full((8, 1), seq % 2048, np.uint16)
    return Frame(data, pts=seq * 1920, duration=1920, seq=seq).with_(**fields)


class Visitor:
    """Who speaks the protocol of rooms by hand."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, message: Any) -> None:
        await self.socket.send(encode_message(message))

    async def hear(self, kind: type[Any]) -> Any:
        """The next message of this kind; all others are passed over."""
        while True:
            message = await self.socket.recv()
            got = read_from_server(message) if isinstance(message, str) else decode(message)
            if isinstance(got, kind):
                return got

    async def closed(self) -> int:
        """The code with which it is closed."""
        while True:
            try:
                await self.socket.recv()
            except ConnectionClosed:
                assert self.socket.close_code is not None
                return self.socket.close_code


@asynccontextmanager
async def visit(served: Served, name: str = "talk") -> AsyncIterator[Visitor]:
    async with websocket(
        f"{served.url}/v1/room/{name}",
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        compression=None,
    ) as socket:
        yield Visitor(socket)
        socket.transport.abort()  # nobody reads what is left, the end of the connection among it


class Producer(Visitor):
    """With its writer of packets."""

    async def begin(self, token: str = "") -> Producing:
        self.writer = PacketWriter(CODES, MonotonicClock())
        await self.say(Produce(token))
        producing = await self.hear(Producing)
        await self.socket.send(self.writer.info)
        return producing

    async def send(self, *seqs: int) -> None:
        for seq in seqs:
            await self.socket.send(self.writer.packet(frame(seq)))
            self.writer.sent(frame(seq))


@asynccontextmanager
async def produce(served: Served, name: str = "talk") -> AsyncIterator[Producer]:
    async with visit(served, name) as visitor:
        producer = Producer(visitor.socket)
        await producer.begin()
        yield producer


async def listening(visitor: Visitor, **asked: Any) -> Listening:
    await visitor.say(Listen(**asked))
    return await visitor.hear(Listening)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(limited())


async def opened(source: RoomSource) -> list[Frame]:
    """All that it gives, from its opening to its end."""
    try:
        await source.open()
        return [got async for got in source.frames()]
    finally:
        await source.aclose()


def url(served: Served | TcpProxy, name: str = "talk") -> str:
    return f"{served.url}/v1/room/{name}"


# ----- by hand


def test_all_who_listen_get_all_in_order(served: Served):
    async def main() -> None:
        async with visit(served) as early, visit(served) as late, visit(served) as visitor:
            assert not (await listening(early)).producing
            producer = Producer(visitor.socket)
            await producer.begin()
            await producer.send(0, 1)
            assert isinstance(await early.hear(Info), Info)
            first = [await early.hear(Data) for _ in range(2)]
            assert (await listening(late)).producing
            await late.hear(Info)  # at once
            await producer.send(2, 3)
            await producer.socket.send(producer.writer.end())
            assert (await producer.hear(Closed)).packets == 4
            assert await producer.closed() == 1000
            rest = [await early.hear(Data) for _ in range(2)]
            assert [data.seq for data in (*first, *rest)] == [0, 1, 2, 3]
            assert [data.discontinuity for data in (*first, *rest)] == [True, False, False, False]
            heard = [await late.hear(Data) for _ in range(2)]
            assert [(data.seq, data.discontinuity) for data in heard] == [(2, True), (3, False)]
            for visitor in (early, late):
                end = await visitor.hear(End)
                assert (end.frames, end.next_seqs, end.broken) == (4, (4,), "")
                assert await visitor.closed() == 1000

    run(main)


def test_one_produces_at_a_time(served: Served):
    async def main() -> None:
        async with produce(served) as producer, visit(served) as second, visit(served) as third:
            await producer.send(0)
            for visitor, first in ((second, Produce("guess")), (third, Open("nano"))):
                await visitor.say(first)
                error = await visitor.hear(Error)
                assert (error.code, error.fatal) == ("occupied", True)
                assert await visitor.closed() == 1008
            async with produce(served, "another"):
                pass

    run(main)


def test_a_producer_that_comes_back_goes_on(served: Served):
    async def main() -> None:
        async with visit(served) as listener:
            await listening(listener)
            async with visit(served) as visitor:
                producer = Producer(visitor.socket)
                token = (await producer.begin()).token
                await producer.send(0, 1)
                await listener.hear(Data)
                producer.socket.transport.abort()
            async with visit(served) as visitor:
                again = Producer(visitor.socket)
                again.writer = producer.writer
                await again.say(Produce(token))
                producing = await again.hear(Producing)
                assert (producing.token, producing.received) == (token, 2)
                await again.socket.send(again.writer.info)
                await again.send(2)
                seqs = [(await listener.hear(Data)).seq for _ in range(2)]
                assert seqs == [1, 2]
                async with visit(served) as other:  # this one seems to hang
                    await other.say(Produce(token))
                    await other.hear(Producing)
                    assert await again.closed() == 4409

    run(main)


def test_a_producer_that_does_not_come_back(serve: Callable[..., Served]):
    served = serve(limits=Limits(resume_seconds=0.3))

    async def main() -> None:
        async with visit(served) as listener:
            await listening(listener)
            async with produce(served) as producer:
                await producer.send(0)
                producer.socket.transport.abort()
            end = await listener.hear(End)
            assert (end.frames, end.broken) == (1, "the producer did not come back")
            assert await listener.closed() == 1000
        async with produce(served):  # the room is free again
            pass

    run(main)


def test_who_is_slow_loses_the_oldest_and_is_told(serve: Callable[..., Served]):
    served = serve()

    async def main() -> None:
        async with visit(served) as slow, visit(served) as quick, produce(served) as producer:
            await listening(slow, window=4)
            await listening(quick, window=4096)
            sending = asyncio.create_task(producer.send(*range(3000)))
            heard = [(await quick.hear(Data)).seq for _ in range(3000)]
            assert heard == list(range(3000))  # whatever the slow one does
            await sending

    run(main)


def test_bounds_of_a_listener():
    packets = [PacketWriter(CODES, MonotonicClock()).packet(frame(seq)) for seq in range(10)]

    async def main() -> None:
        listener = Listener(Listen(window=3), 10_000)
        listener.describe(b"info")
        for packet in packets[:7]:
            listener.offer(packet)
        got = aiter(listener)
        assert await anext(got) == b"info"
        assert await anext(got) == Dropped("output", 4, 4, 0)
        first, second = decode(await anext(got)), decode(await anext(got))
        assert (first.seq, first.discontinuity) == (4, True)
        assert (second.seq, second.discontinuity) == (5, False)
        listener.offer(packets[7])
        listener.finish(b"end")
        assert [decode(await anext(got)).seq for _ in range(2)] == [6, 7]
        assert await anext(got) == b"end"
        assert [item async for item in got] == []
        closing = Listener(Listen(window=1, policy="close"), 10_000)
        closing.offer(packets[0])
        closing.offer(packets[1])
        assert [item async for item in closing] == [] and closing.ended == "too_slow"
        heavy = Listener(Listen(window=100), 2 * len(packets[-1]))
        for packet in packets:
            heavy.offer(packet)
        assert heavy.dropped == 7

    run(main)


def test_all_wait_a_moment_for_who_asks_for_that():
    async def main() -> None:
        room = Room("talk", Limits(room_block_seconds=0.05), lambda room: None)
        production = room.produce()
        writer = PacketWriter(CODES, MonotonicClock())
        production.describe(decode(writer.info))
        listener = room.join(Listen(window=1, policy="block"))
        loop = asyncio.get_running_loop()
        loop.call_later(0.01, lambda: taking.append(asyncio.ensure_future(anext(got))))
        got, taking = aiter(listener), []
        for seq in range(2):
            await room.publish(writer.packet(frame(seq)))
        assert listener.dropped == 0  # it was taken in time
        began = loop.time()
        await room.publish(writer.packet(frame(2)))
        assert loop.time() - began > 0.04 and listener.dropped == 1
        began = loop.time()
        await room.publish(writer.packet(frame(3)))
        assert loop.time() - began < 0.04  # once, and no more
        await asyncio.gather(*taking)
        room.part(listener)
        room.left(production)

    run(main)


def test_who_waits_for_nobody_is_sent_away(serve: Callable[..., Served]):
    served = serve(limits=Limits(room_wait_seconds=0.1))

    async def main() -> None:
        async with visit(served) as listener:
            await listening(listener)
            assert (await listener.hear(Error)).code == "idle"
            assert await listener.closed() == 4408

    run(main)


def test_rooms_and_listeners_are_bounded(serve: Callable[..., Served]):
    served = serve(limits=Limits(rooms=1, room_listeners=1))

    async def main() -> None:
        async with visit(served) as first, visit(served) as second:
            await listening(first)
            await second.say(Listen())
            assert (await second.hear(Error)).code == "full"
            assert await second.closed() == 1013
            with pytest.raises(InvalidStatus) as told:
                async with visit(served, "another"):
                    pass
            assert told.value.response.status_code == 503
            assert told.value.response.headers["Retry-After"]
        for _ in range(100):  # the room is forgotten when nobody is there
            try:
                async with visit(served, "another") as visitor:
                    await listening(visitor)
                    return
            except InvalidStatus:
                await asyncio.sleep(0.02)
        raise AssertionError

    run(main)


@pytest.mark.parametrize("name", ["a" * 65, "a%20b", "%C3%A4"])
def test_names_are_bounded(served: Served, name: str):
    async def main() -> None:
        with pytest.raises(InvalidStatus) as told:
            async with visit(served, name):
                pass
        assert told.value.response.status_code == 400

    run(main)


def test_what_does_not_fit_reaches_nobody(served: Served):
    writer = PacketWriter(CODES, MonotonicClock())
    other = PacketWriter(CODES, MonotonicClock())
    wrong = PacketWriter(
        StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "x", 65536),
        MonotonicClock(),
    )
    wrong.stream = writer.stream
    high = wrong.packet(Frame(np.full((8, 1), 5000, np.uint16), 0, 1920, 0))

    async def main() -> None:
        async with visit(served) as listener, visit(served) as visitor:
            await listening(listener)
            await visitor.say(Produce())
            await visitor.hear(Producing)
            for packet in (
                writer.packet(frame(0)),  # before its info
                writer.info,
                b"SE\x01\x03Dnonsense",
                other.info,
                other.packet(frame(0)),
                high,
                writer.packet(frame(0)).replace(b"\x00" * 16, b"\x00" * 15),
                encode_samples(np.zeros((1, 4), np.int16), 0, 0),
            ):
                await visitor.socket.send(packet)
                if packet != writer.info:
                    error = await visitor.hear(Error)
                    assert (error.code, error.fatal) == ("bad_packet", False)
            await visitor.socket.send(writer.packet(frame(7)))
            assert (await listener.hear(Data)).seq == 7
            for _ in range(10):
                await visitor.socket.send(b"SE")
            assert await visitor.closed() == 4400

    run(main)


@pytest.mark.parametrize("text", ["{}", '{"type":"close"}', "x" * 3_000_000])
def test_first_words_that_make_no_sense(served: Served, text: str):
    async def main() -> None:
        async with visit(served) as visitor:
            await visitor.socket.send(text)
            assert await visitor.closed() in (1008, 1009)

    run(main)


# ----- encoded by the server


def test_what_the_server_encodes_goes_to_all(served: Served):
    samples = (np.random.default_rng(0).standard_normal(24_000) * 0.1).astype(np.float32)
    wanted = nano().encode(samples[None]).numpy()[0]

    async def main() -> None:
        async with visit(served) as listener:
            await listening(listener, window=4096)
            async with TcpProxy(served.url, [60_000]) as proxy:
                async with streamenc.client.connect(
                    url(proxy), model="nano", format="f32"
                ) as stream:
                    for at in range(0, len(samples), 1000):
                        await stream.send(samples[at : at + 1000])
                    await stream.close()
                    codes = [piece.data async for piece in stream]
                    assert stream.statistics().resumed == 1
            assert np.array_equal(np.concatenate(codes, axis=1), wanted)
            info = await listener.hear(Info)
            heard = [await listener.hear(Data) for _ in range(len(codes))]
            end = await listener.hear(End)
            assert {data.stream for data in heard} == {info.stream, end.stream} - {1}
            assert np.array_equal(np.concatenate([data.data for data in heard], axis=1), wanted)
            assert [data.seq for data in heard] == list(range(len(codes)))
            assert (end.frames, end.broken) == (len(codes), "")

    run(main)


def test_what_is_sent_again_to_who_produces_goes_to_the_others_once():
    writer = PacketWriter(CODES, MonotonicClock())
    packets = [writer.packet(frame(seq)) for seq in range(3)]

    async def main() -> None:
        room = Room("talk", Limits(), lambda room: None)
        listener = room.join(Listen())
        opened = SimpleNamespace(opened=SimpleNamespace(session="s-1"))
        for new, numbers in ((True, (0, 1)), (False, (1, 2))):
            tap = RoomTap(room, new=new)
            tap.began(opened)  # type: ignore[arg-type]
            await tap.passed(writer.info)
            for n in numbers:
                await tap.passed(Sent(n, None, packets[n]))
            tap.left()
        await tap.passed(Sent(3, Closed(3, 3, 0.0), ""))
        got = [decode(item) async for item in listener if isinstance(item, bytes)]
        assert [item.seq for item in got if isinstance(item, Data)] == [0, 1, 2]
        assert isinstance(got[-1], End) and got[-1].frames == 3
        room.part(listener)

    run(main)


# ----- sinks and sources


def test_a_sink_and_sources(served: Served):
    async def main() -> None:
        sink = RoomSink(url(served))
        sources = [RoomSource(url(served)) for _ in range(2)]
        listening_ = [asyncio.create_task(opened(source)) for source in sources]
        await asyncio.sleep(0.2)
        await sink.open(CODES)
        for seq in range(300):
            await sink.write(frame(seq))
        await sink.aclose()
        for source, task in zip(sources, listening_, strict=True):
            got = await task
            assert [f.seq for f in got] == list(range(300))
            assert all(np.array_equal(f.data, frame(f.seq).data) for f in got)
            assert (source.lost, source.broken, *source.remarks) == (0, "")
        assert (sink.dropped, sink.remarks) == (0, [])

    run(main)


def test_ends_whose_connections_break_go_on(served: Served):
    async def main() -> None:
        async with TcpProxy(served.url, [9000, 4000, 6000]) as proxy:
            sink, source = RoomSink(url(proxy), queue=16), RoomSource(url(served))
            task = asyncio.create_task(opened(source))
            await asyncio.sleep(0.1)
            await sink.open(CODES)
            for seq in range(400):
                await sink.write(frame(seq))
            await sink.aclose()
            got = await task
            assert [f.seq for f in got] == list(range(400))
            assert source.lost == 0
            assert proxy.connections == 4
            assert "was lost 3 times" in sink.remarks[0]

    run(main)


def test_a_listener_that_was_away_counts_what_it_missed(served: Served):
    async def main() -> None:
        async with TcpProxy(served.url, [9000]) as proxy:
            sink, source = RoomSink(url(served)), RoomSource(url(proxy))
            task = asyncio.create_task(opened(source))
            await sink.open(CODES)
            for seq in range(150):
                await sink.write(frame(seq))
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.3)
            assert proxy.connections == 2
            for seq in range(150, 160):
                await sink.write(frame(seq))
            await sink.aclose()
            got = await task
            missed = 160 - len(got)
            assert source.lost + source._reader.missed == missed
            gaps = [f.seq for f in got if f.discontinuity]
            assert len(gaps) == 2 or source.lost == 0
            assert any("was lost 1 times" in remark for remark in source.remarks)

    run(main)


def test_a_server_that_is_gone_for_good(serve: Callable[..., Served]):
    served = serve()

    async def main() -> None:
        async with TcpProxy(served.url) as proxy:
            sink, source = RoomSink(url(proxy), timeout_s=0.3), RoomSource(url(proxy), timeout_s=1)
            task = asyncio.create_task(opened(source))
            await sink.open(CODES)
            await sink.write(frame(0))
            await asyncio.sleep(0.2)
        with pytest.raises(TransportError, match="not there again within 0.3 s"):
            for seq in range(1, 1000):
                await sink.write(frame(seq))
                await asyncio.sleep(0.01)
        await sink.aclose()
        with pytest.raises(TransportError, match="not there again within 1 s"):
            await task

    run(main)


def test_a_credit_is_told_now_and_then(served: Served):
    async def main() -> None:
        async with produce(served) as producer:
            await producer.send(*range(20))
            assert await producer.hear(Credit) == Credit(0, 8, 64)

    run(main)
