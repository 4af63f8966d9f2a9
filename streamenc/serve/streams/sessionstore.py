"""SessionStore: streams as they last were, for other processes to go on with when one dies.

Each stream has a key, the hash of its token's secret, and an epoch, which every claim raises: who
still has an older one can write no more, so that of two processes only the last one goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from streamenc.errors import OutputError

T = TypeVar("T")

KEY_LETTERS = 64  # a SHA-256 in hexadecimal
# How often a claim is tried where another process claims at the same moment.
MAX_TRIES = 8


def key_of(secret: str) -> str:
    """What a stream is called in the store: nobody who reads it can resume the stream."""
    return hashlib.sha256(secret.encode()).hexdigest()


class SessionStore(ABC):
    """Where streams are written to. All of it may be called from one event loop."""

    @abstractmethod
    async def put(self, key: str, epoch: int, blob: bytes) -> bool:
        """Writes a stream; False where a higher epoch has claimed it, and nothing is written."""

    @abstractmethod
    async def claim(self, key: str) -> tuple[int, bytes] | None:
        """The stream as it was last written, and the epoch of who goes on with it from now on;
        None where there is none."""

    @abstractmethod
    async def touch(self, key: str, epoch: int) -> bool:
        """The stream lives, though nothing of it has changed. As `put` otherwise."""

    @abstractmethod
    async def drop(self, key: str, epoch: int) -> None:
        """Forgets a stream, unless a higher epoch has claimed it."""

    @abstractmethod
    async def sweep(self, older_than_seconds: float) -> int:
        """Forgets streams that nobody has written, touched or claimed for so long; how many."""

    async def aclose(self) -> None:
        """Ends what the store uses."""
        return None


class FolderStore(SessionStore):
    """A folder, which several servers may share: a folder in it for each stream, a file in that.

    What was written survives the death of any process, not that of the machine: it is not
    flushed to the disk each time. Only the user that runs this can read it.

    Raises:
        OutputError: Where the folder cannot be made or written.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not os.access(self._folder, os.W_OK | os.X_OK):
                raise PermissionError("it may not be written by this user")
        except OSError as error:
            raise OutputError(
                f"cannot keep streams in {self._folder}: {error}; name another folder (--store)"
            ) from error
        # Two: a large stream must not hold up all the others.
        self._threads = ThreadPoolExecutor(2, "streamenc-store")
        self._number = 0

    async def put(self, key: str, epoch: int, blob: bytes) -> bool:
        self._number += 1
        return await self._run(lambda number: self._put(key, epoch, blob, number), self._number)

    async def claim(self, key: str) -> tuple[int, bytes] | None:
        return await self._run(lambda _: self._claim(key))

    async def touch(self, key: str, epoch: int) -> bool:
        return await self._run(lambda _: self._touch(key, epoch))

    async def drop(self, key: str, epoch: int) -> None:
        await self._run(lambda _: self._drop(key, epoch))

    async def sweep(self, older_than_seconds: float) -> int:
        return await self._run(lambda _: self._sweep(older_than_seconds))

    async def aclose(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)

    async def _run(self, call: Callable[[int], T], number: int = 0) -> T:
        """Raises OutputError, whatever the system says: the folder may be on another machine."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, call, number)
        except OSError as error:
            raise OutputError(f"cannot use the streams of {self._folder}: {error}") from error

    def _put(self, key: str, epoch: int, blob: bytes, number: int) -> bool:
        folder = self._of(key)
        unfinished = self._folder / f".{os.getpid()}-{number}"
        try:
            if max(_epochs(folder), default=0) > epoch:
                return False
            folder.mkdir(mode=0o700, exist_ok=True)
            with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
                f.write(blob)
            os.replace(unfinished, folder / str(epoch))
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise OutputError(f"cannot write a stream to {self._folder}: {error}") from error
        if max(_epochs(folder), default=0) > epoch:  # claimed meanwhile
            (folder / str(epoch)).unlink(missing_ok=True)
            return False
        return True

    def _claim(self, key: str) -> tuple[int, bytes] | None:
        folder = self._of(key)
        for _ in range(MAX_TRIES):
            epochs = _epochs(folder)
            if not epochs:
                return None
            last = max(epochs)
            mine = folder / str(last + 1)
            try:
                # Whoever renames it has it: the others find it gone, and look again.
                os.rename(folder / str(last), mine)
                os.utime(mine)
                blob = mine.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise OutputError(f"cannot read a stream of {self._folder}: {error}") from error
            for old in epochs:
                if old < last:
                    (folder / str(old)).unlink(missing_ok=True)
            return last + 1, blob
        return None

    def _touch(self, key: str, epoch: int) -> bool:
        folder = self._of(key)
        if max(_epochs(folder), default=0) > epoch:
            return False
        with contextlib.suppress(FileNotFoundError):
            os.utime(folder / str(epoch))
        return True

    def _drop(self, key: str, epoch: int) -> None:
        folder = self._of(key)
        epochs = _epochs(folder)
        for old in epochs:
            if old <= epoch:
                (folder / str(old)).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another one has it
            folder.rmdir()

    def _sweep(self, older_than_seconds: float) -> int:
        count, before = 0, time.time() - older_than_seconds
        for folder in list(os.scandir(self._folder)):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if folder.name.startswith("."):  # what a process that died had begun
                    if folder.stat().st_mtime < before:
                        os.unlink(folder)
                    continue
                stale = [file for file in os.scandir(folder) if file.stat().st_mtime < before]
                for file in stale:
                    os.unlink(file)
                    count += 1
                if folder.stat().st_mtime < before or stale:
                    with contextlib.suppress(OSError):
                        os.rmdir(folder)
        return count

    def _of(self, key: str) -> Path:
        assert len(key) == KEY_LETTERS and key.isalnum(), "a hash, never what a client sent"
        return self._folder / key


def _epochs(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder) if name.isdigit()]
    except FileNotFoundError:
        return []
