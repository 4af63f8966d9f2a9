"""Streams in a store: who claimed one last has it, whatever others still write."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from streamenc.errors import OutputError
from streamenc.serve.streams.sessionstore import FolderStore

KEY = "ab" * 32


def test_what_was_put_last_is_claimed_once(tmp_path: Path) -> None:
    async def go() -> None:
        store = FolderStore(tmp_path / "store")
        assert await store.claim(KEY) is None
        assert await store.put(KEY, 1, b"one")
        assert await store.put(KEY, 1, b"two")
        assert await store.claim(KEY) == (2, b"two")
        assert not await store.put(KEY, 1, b"late"), "another one has claimed it"
        assert not await store.touch(KEY, 1)
        assert await store.put(KEY, 2, b"three") and await store.touch(KEY, 2)
        await store.drop(KEY, 1)
        assert await store.claim(KEY) == (3, b"three")
        await store.drop(KEY, 3)
        assert await store.claim(KEY) is None
        assert os.listdir(tmp_path / "store") == []
        await store.aclose()

    asyncio.run(go())


def test_a_folder_that_is_gone_is_told_as_an_error_of_the_store(tmp_path: Path) -> None:
    async def go() -> None:
        store = FolderStore(tmp_path / "store")
        (tmp_path / "store").rmdir()
        for call in (store.sweep(1.0), store.put(KEY, 1, b"one")):
            with pytest.raises(OutputError, match="store"):
                await call
        assert await store.claim(KEY) is None
        await store.aclose()

    asyncio.run(go())


def test_of_many_that_claim_at_once_one_has_the_last_epoch(tmp_path: Path) -> None:
    stores = [FolderStore(tmp_path) for _ in range(6)]
    stores[0]._put(KEY, 1, b"x" * 1000, 0)
    got: list[tuple[int, bytes] | None] = []
    barrier = threading.Barrier(len(stores))

    def claim(store: FolderStore) -> None:
        barrier.wait()
        got.append(store._claim(KEY))

    threads = [threading.Thread(target=claim, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    epochs = [claimed[0] for claimed in got if claimed]
    assert len(set(epochs)) == len(epochs)
    assert all(claimed is None or claimed[1] == b"x" * 1000 for claimed in got)
    assert stores[0]._put(KEY, max(epochs), b"mine", 1)
    assert not stores[0]._put(KEY, max(epochs) - 1, b"not", 2)


def test_old_ones_are_swept(tmp_path: Path) -> None:
    async def go() -> None:
        store = FolderStore(tmp_path)
        await store.put(KEY, 1, b"old")
        await store.put("cd" * 32, 1, b"new")
        (tmp_path / ".123-4").write_bytes(b"unfinished")
        for path in (tmp_path / KEY / "1", tmp_path / KEY, tmp_path / ".123-4"):
            os.utime(path, (1, 1))
        assert await store.sweep(60) == 1
        assert os.listdir(tmp_path) == ["cd" * 32]
        await store.aclose()

    asyncio.run(go())


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    async def go() -> None:
        store = FolderStore(tmp_path / "store")
        await store.put(KEY, 1, b"secret")
        for path in (tmp_path / "store", tmp_path / "store" / KEY, tmp_path / "store" / KEY / "1"):
            assert not path.stat().st_mode & 0o077
        await store.aclose()

    asyncio.run(go())


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--store"):
        FolderStore(tmp_path / "file" / "store")
