"""The store's actor, without Ray: claims, bounds, and streams that are handed over."""

from __future__ import annotations

import asyncio
import time

import pytest

from streamenc.serve.cluster import shelf as shelf_module
from streamenc.serve.cluster.shelf import Shelf

KEY, OTHER = "a" * 64, "b" * 64


def test_a_claim_leaves_the_last_holder_without_a_word() -> None:
    async def go() -> None:
        shelf = Shelf(1000)
        assert await shelf.claim("new", KEY) is None
        assert await shelf.put("old", KEY, 0, b"one") == "kept"
        assert await shelf.claim("new", KEY) == (1, b"one")
        assert await shelf.put("old", KEY, 0, b"late") == "claimed"
        assert not await shelf.touch(KEY, 0) and await shelf.touch(KEY, 1)
        await shelf.drop(KEY, 0)
        assert await shelf.claim("third", KEY) == (2, b"one")
        await shelf.drop(KEY, 2)
        assert await shelf.claim("third", KEY) is None
        assert await shelf.touch(KEY, 2)

    asyncio.run(go())


def test_what_does_not_fit_is_refused_and_throws_nothing_out() -> None:
    async def go() -> None:
        shelf = Shelf(10)
        assert await shelf.put("a", KEY, 0, b"123456") == "kept"
        assert await shelf.put("a", OTHER, 0, b"12345") == "full"
        assert await shelf.put("a", KEY, 0, b"1234567890") == "kept"
        assert await shelf.put("a", KEY, 0, b"12345678901") == "full"
        assert await shelf.claim("b", KEY) == (1, b"1234567890")
        await shelf.drop(KEY, 1)
        assert await shelf.put("a", OTHER, 0, b"12345") == "kept"
        assert (await shelf.statistics())["bytes"] == 5

    asyncio.run(go())


def test_old_streams_are_swept() -> None:
    async def go() -> None:
        now = [0.0]
        shelf = Shelf(1000, lambda: now[0])
        await shelf.put("a", KEY, 0, b"1")
        await shelf.put("a", OTHER, 0, b"2")
        now[0] = 61
        await shelf.touch(OTHER, 0)
        assert await shelf.sweep(60) == 1
        assert await shelf.claim("b", KEY) is None
        assert await shelf.claim("b", OTHER) == (1, b"2")

    asyncio.run(go())


@pytest.mark.parametrize("written", [True, False])
def test_a_live_holder_writes_the_stream_down_before_another_one_has_it(written: bool) -> None:
    async def go() -> None:
        shelf = Shelf(1000)
        if written:
            await shelf.put("old", KEY, 0, b"a while ago")

        async def holder(name: str, has: bool) -> None:
            keys: list[str] = []
            while True:
                keys = await shelf.wanted(name, keys)
                if keys and has:
                    await shelf.put(name, KEY, 0, b"now")

        tasks = [asyncio.create_task(holder("old", True)), asyncio.create_task(holder("x", False))]
        await asyncio.sleep(0)
        start = time.monotonic()
        assert await shelf.claim("new", KEY) == (1, b"now")
        assert time.monotonic() - start < 1
        assert await shelf.put("old", KEY, 0, b"late") == "claimed"
        for task in tasks:
            task.cancel()

    asyncio.run(go())


def test_a_holder_that_died_is_waited_for_briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf_module, "CLAIM_SECONDS", 0.05)
    monkeypatch.setattr(shelf_module, "LISTEN_SECONDS", 0.01)

    async def go() -> None:
        now = [0.0]
        shelf = Shelf(1000, lambda: now[0])
        await shelf.put("old", KEY, 0, b"a while ago")
        await shelf.wanted("old", [])
        assert await shelf.claim("new", KEY) == (1, b"a while ago")
        await shelf.wanted("new", [])
        now[0] = 60
        monkeypatch.setattr(shelf_module, "CLAIM_SECONDS", 60)
        assert await shelf.claim("third", KEY) == (2, b"a while ago")

    asyncio.run(go())
