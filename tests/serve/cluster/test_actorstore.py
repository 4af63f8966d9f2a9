"""Two servers and one store, without Ray: a stream is handed over while both live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamenc.engine.engine import Engine
from streamenc.errors import OutputError
from streamenc.io.network.websocket.livemessages import Close, Open, Resume
from streamenc.io.network.wire import Data, decode, encode_samples
from streamenc.serve.cluster.actorstore import ActorStore, Ask
from streamenc.serve.cluster.shelf import Shelf
from streamenc.serve.limits import Limits
from streamenc.serve.service import Service
from streamenc.serve.streams.attachment import Attachment
from tests.serve.conftest import nano

KEY = "a" * 64


def asking(shelf: Shelf) -> Ask:
    async def ask(method: str, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return await getattr(shelf, method)(*arguments)

    return ask


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


async def codes_of(attachment: Attachment, into: list[np.ndarray[Any, Any]]) -> None:
    async for item in attachment:
        packet = getattr(item, "packet", item)
        if isinstance(packet, bytes) and isinstance(data := decode(packet), Data):
            into.append(data.data)
            attachment.credit(len(into), 1000)


def test_a_stream_is_handed_over_as_it_is_now(engine_address: tuple[str, Engine]) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)[None]
    codes: list[np.ndarray[Any, Any]] = []

    async def go() -> None:
        shelf = Shelf(2**20)
        seldom = Limits(checkpoint_seconds=1000)
        services = []
        for name in ("one", "two"):
            store = ActorStore(asking(shelf), name)
            services.append(Service([engine_address[0]], seldom, store=store, worker=name))
            store.listen(services[-1].let_go)
        first, second = services
        async with first, second:
            await until(lambda: first.ready and second.ready)
            stream = await first.open(Open("nano", format="f32", window=1000))
            attachment, _ = stream.attach(window=1000)
            reader = asyncio.create_task(codes_of(attachment, codes))
            for n in range(10):
                part = samples[:, n * 1600 : (n + 1) * 1600]
                await stream.put(decode(encode_samples(part, n, n * 1600)))  # type: ignore[arg-type]
            await until(lambda: len(codes) >= 10)
            # Its client is still there, as far as the first server knows.
            other = await second.resume(Resume(stream.token, len(codes)))
            await asyncio.wait_for(reader, 5)
            assert not first.streams and stream.ended
            attachment, told = other.attach(received=len(codes), window=1000)
            assert (told.source, told.exact, told.next_seq) == ("store", True, 10)
            rest = samples[:, told.next_pts :]
            await other.put(decode(encode_samples(rest, told.next_seq, told.next_pts)))  # type: ignore[arg-type]
            await other.put(Close())
            await asyncio.wait_for(codes_of(attachment, codes), 20)
            await second.forget(other)
            assert (await shelf.statistics())["streams"] == 0

    asyncio.run(go())
    whole = nano().encode(samples[None])
    np.testing.assert_array_equal(np.concatenate(codes, axis=1), whole.numpy()[0])


def test_a_store_without_room_says_what_to_do() -> None:
    async def go() -> None:
        store = ActorStore(asking(Shelf(10)), "one")
        with pytest.raises(OutputError, match="store_bytes"):
            await store.put(KEY, 1, b"more than fits")
        await store.aclose()

    asyncio.run(go())
