"""The client at a server that is cut off, dies, refuses and ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import numpy as np
import pytest

import streamenc.client
from tests.support.streamserver import StreamServer, codes_of

SAMPLES = np.random.default_rng(0).integers(-3000, 3000, 2000).astype(np.int16)


def run(main: Callable[[], Awaitable[None]], seconds: float = 30) -> None:
    """What a test leaves open warns, and warnings are errors."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await main()

    asyncio.run(limited())
    gc.collect()


def connect(server: StreamServer, **options: Any) -> streamenc.client.ClientStream:
    return streamenc.client.connect(server.url, **{"model": "stand-in", "window": 16, **options})


async def all_codes(stream: streamenc.client.ClientStream, pieces: list[Any]) -> None:
    async for piece in stream:
        pieces.append(piece)


async def whole(server: StreamServer, **options: Any) -> tuple[np.ndarray[Any, Any], Any]:
    """The codes of SAMPLES, sent in odd pieces, and the statistics."""
    async with connect(server, **options) as stream:
        pieces: list[Any] = []
        reading = asyncio.create_task(all_codes(stream, pieces))
        for at in range(0, len(SAMPLES), 37):
            await stream.send(SAMPLES[at : at + 37])
        await stream.close()
        await reading
        assert [piece.seq for piece in pieces] == list(range(len(pieces)))
        assert not any(piece.discontinuity for piece in pieces)
        assert pieces[3].seconds == pytest.approx(12 / 16000)
        return np.concatenate([piece.data for piece in pieces], axis=1), stream.statistics()


def test_a_stream():
    async def main() -> None:
        async with StreamServer() as server:
            codes, statistics = await whole(server)
            assert np.array_equal(codes, codes_of(SAMPLES))
            assert statistics.connections == 1
            assert statistics.resumed == statistics.missing == statistics.unread == 0
            assert statistics.bytes_sent > 2 * len(SAMPLES)
            assert server.paths == ["/v1/stream"]

    run(main)


@pytest.mark.parametrize("seed", range(6))
def test_connections_that_are_cut_off_anywhere(seed: int):
    random = Random(seed)

    async def main() -> None:
        async with StreamServer(window=random.choice((1, 4, 16))) as server:
            # The first one lives to say that the stream is there.
            server.kill_after = [random.randint(3, 60) for _ in range(12)]
            server.die = [random.random() < 0.4 for _ in range(12)]
            codes, statistics = await whole(server)
            assert np.array_equal(codes, codes_of(SAMPLES))
            assert statistics.connections == server.connections > 3
            assert statistics.missing == 0

    run(main)
