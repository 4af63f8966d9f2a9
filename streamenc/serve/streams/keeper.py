"""Keeper: writes one stream to the store now and then, and tells whether it is still ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from streamenc.errors import StreamencError
from streamenc.serve.streams.sessionstore import SessionStore
from streamenc.serve.streams.streamrecord import StreamRecord


class Keeper:
    """A stream's place in the store.

    Args:
        key: What the stream is called there.
        epoch: Of this process' claim; 1 for a new stream.
        every_seconds: How often it is written while it goes on; 0 for only when it is asked for.
        written: Told the record that is safe now.
        lost: Called where another process has claimed the stream.
        complain: Told what went wrong.

    Attributes:
        changed: Whether there is something that was not written.
    """

    def __init__(
        self,
        store: SessionStore | None,
        key: str,
        epoch: int,
        every_seconds: float,
        *,
        written: Callable[[StreamRecord], None],
        lost: Callable[[], None],
        complain: Callable[[Exception], None],
    ) -> None:
        self._store, self._key, self._epoch = store, key, epoch
        self._every_seconds = every_seconds or float("inf")
        self._written, self._lost, self._complain = written, lost, complain
        self._at = 0.0
        self._writing: asyncio.Task[None] | None = None
        self.changed = True

    @property
    def due(self) -> bool:
        """Whether it is to be written now."""
        idle = self._store is not None and self._writing is None
        return idle and asyncio.get_running_loop().time() >= self._at

    def soon(self) -> None:
        """It is due at the next opportunity."""
        self._at = 0.0

    async def write(self, record: Callable[[], Awaitable[StreamRecord]]) -> None:
        """Takes down what the stream is now; the writing itself goes on in the background."""
        if self._store is None:
            return
        loop = asyncio.get_running_loop()
        self._at = loop.time() + self._every_seconds
        taken = await record() if self.changed else None
        self.changed = False
        await self.finish()
        self._writing = loop.create_task(self._put(self._store, taken))

    async def is_ours(self) -> bool:
        """Whether no other process has claimed the stream."""
        return self._store is None or await self._store.touch(self._key, self._epoch)

    async def finish(self) -> None:
        """Waits for what is being written."""
        if self._writing is not None:
            await asyncio.wait((self._writing,))  # who waits may be cancelled: it goes on

    async def drop(self) -> None:
        """Nothing of the stream is kept."""
        await self.finish()
        if self._store is not None:
            try:
                await self._store.drop(self._key, self._epoch)
            except StreamencError as error:
                self._complain(error)

    async def _put(self, store: SessionStore, record: StreamRecord | None) -> None:
        try:
            if record is None:
                ours = await store.touch(self._key, self._epoch)
            else:
                blob = await asyncio.to_thread(record.to_bytes)
                ours = await store.put(self._key, self._epoch, blob)
        except StreamencError as error:
            self.changed = True
            self._complain(error)
            return
        finally:
            self._writing = None
        if not ours:
            self._lost()
        elif record is not None:
            self._written(record)
