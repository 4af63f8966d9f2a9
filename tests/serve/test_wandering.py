"""A client that wanders: its connections break anywhere, and it comes back here or elsewhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from streamenc.io.network.websocket.livemessages import (
    Close,
    Closed,
    Flush,
    Flushed,
    Mark,
    Marked,
    encode_message,
)
from streamenc.io.network.wire import encode_samples
from tests.serve.conftest import Served
from tests.serve.test_streamsocket import offline, sound
from tests.support.profile import FULL
from tests.support.rawsocket import RawSocket

SEEDS = range(40 if FULL else 5)
PARTS = 3


def script(rng: random.Random) -> list[Any]:
    """Ordered messages as functions of their number: sound in pieces, marks, and flushes."""
    messages: list[Any] = []
    samples, at = sound(1.5, seed=rng.randrange(100)), 0
    ends = sorted(rng.sample(range(1000, len(samples)), PARTS - 1)) + [len(samples)]
    for end in ends:
        while at < end:
            size = min(rng.randrange(1, 2500), end - at)
            piece = samples[None, at : at + size]
            messages.append(lambda seq, piece=piece, at=at: encode_samples(piece, seq, at))
            at += size
            if not rng.randrange(6):
                name = f"at {at}"
                messages.append(lambda seq, name=name: encode_message(Mark(name, seq)))
        if end < len(samples):
            messages.append(lambda seq: encode_message(Flush(seq)))
    messages.append(lambda seq: encode_message(Close(seq)))
    return [samples, ends, messages]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_missing_and_nothing_comes_twice(
    serve: Callable[..., Served], seed: int
) -> None:
    rng = random.Random(seed)
    servers = [serve(worker=str(index)) for index in range(2)]
    samples, ends, messages = script(rng)
    sources: list[str] = []

    async def go() -> RawSocket:
        async with RawSocket(servers[0].url) as socket:
            window = rng.choice([1, 5, 300])
            await socket.open(model="nano", format="f32", codebooks=8, window=window)
            at = 0
            for _ in range(200):
                try:
                    for _ in range(rng.randrange(1, 12)):
                        if at < len(messages):
                            await socket.send(messages[at](at))
                            at += 1
                    await asyncio.sleep(rng.choice([0, 0, 0.002, 0.02]))
                    if at == len(messages) and not rng.randrange(2):
                        await socket.until(Closed)
                        return socket
                except (ConnectionClosed, EOFError):
                    pass
                await socket.leave(abort=bool(rng.randrange(2)))
                socket.url = rng.choice(servers).url
                resumed = await socket.resume()
                assert resumed.exact and resumed.n == socket.count
                sources.append(resumed.source)
                at = resumed.next_seq
            raise AssertionError("it does not come to an end")

    socket = asyncio.run(go())
    begin = 0
    expected = []
    for end in ends:
        expected.append(offline(samples[begin:end], 8))
        begin = end
    np.testing.assert_array_equal(socket.codes(), np.concatenate(expected, axis=1))
    assert [d.seq for d in socket.data] == list(range(len(socket.data)))
    assert sum(isinstance(m, Flushed) for m in socket.messages) == PARTS - 1
    marks = [m for m in socket.messages if isinstance(m, Marked)]
    assert [m.id for m in marks] == [f"at {m.pts}" for m in marks]
    closed = socket.messages[-1]
    assert isinstance(closed, Closed) and closed.packets == len(socket.data)
