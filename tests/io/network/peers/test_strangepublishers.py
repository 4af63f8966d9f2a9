"""A bound input of ZeroMQ, to which anybody may publish: the first publisher is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import anyio
import zmq
import zmq.asyncio

from streamenc.graph.frames import Frame
from streamenc.io.network.wire import End, encode_end, encode_frame, encode_info
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from tests.io.network.test_packets import CODES, code_frame


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await anyio.sleep(0.01)
    raise AssertionError("it took too long")


def test_a_stranger_ends_and_silences_no_bound_input() -> None:
    async def main() -> list[Frame]:
        source = ZmqSource("zmq+tcp://127.0.0.1:0", bind=True)
        got: list[Frame] = []
        with zmq.asyncio.Context() as context, context.socket(zmq.PUB) as bad:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(source.open)
                await until(lambda: not source.endpoint.endswith(":0"))
                sink = ZmqSink(source.endpoint, bind=False, wait_subscribers=1)
                await sink.open(CODES)
            bad.connect(source.endpoint.removeprefix("zmq+"))
            await anyio.sleep(0.3)

            async def collect() -> None:
                async for frame in source.frames():
                    got.append(frame)

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(collect)
                stream = source._reader.stream
                for seq in range(10):
                    await sink.write(code_frame(seq))
                    if seq == 4:
                        await until(lambda: len(got) == 5)
                        for packet in (
                            encode_end(End(stream, 5, (5,))),
                            encode_info(replace(CODES, model="other"), 77, 1),
                            encode_frame(code_frame(2000, pts=1), CODES, stream),
                        ):
                            await bad.send(packet)
                        await anyio.sleep(0.1)
                await sink.aclose()
        assert source.lost == 0 and any("another publisher" in said for said in source.remarks)
        await source.aclose()
        return got

    got = anyio.run(main)
    assert [f.seq for f in got if f.pts != 1] == list(range(10))
