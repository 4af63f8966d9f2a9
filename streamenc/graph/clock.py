"""Clocks of the graph: the real one, and one for tests that jumps instead of waiting."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import anyio
from anyio.lowlevel import checkpoint
from anyio.to_thread import current_default_thread_limiter


class Clock(Protocol):
    """What the graph and its nodes ask for the time and for a pause, in integer nanoseconds."""

    def now_ns(self) -> int: ...

    async def sleep_until_ns(self, due_ns: int) -> None: ...

    def busy(self) -> AbstractContextManager[None]:
        """Around waiting for work outside the event loop (a thread, a device, a process).

        A clock that jumps must not take such a wait for idleness. Never sleep on the clock inside.
        """
        ...


class MonotonicClock:
    """The system's monotonic clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep_until_ns(self, due_ns: int) -> None:
        """Returns at once where `due_ns` has passed already."""
        await anyio.sleep(max(0, due_ns - self.now_ns()) / 1e9)

    def busy(self) -> AbstractContextManager[None]:
        return nullcontext()


class VirtualClock:
    """A clock that stands still while anything can run, and jumps to the next sleeper otherwise.

    So an hour of a paced stream takes no longer than its frames need, and takes them in the same
    order every time. Idle means: no callback of the event loop is ready, in several turns in a row
    (each of them also polls the sockets), no thread of anyio's default limiter is at work, and
    nobody is inside `busy()`. Waiting for another process over a socket counts as idle, and real
    timers (`anyio.sleep`) do not hold the clock back.

    For asyncio's own event loops; one clock per loop.
    """

    _IDLE_TURNS = 3
    _THREAD_POLL_SECONDS = 0.001

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._sleepers: dict[asyncio.Future[None], int] = {}
        self._busy = 0
        self._idle_turns = 0
        self._watching: asyncio.AbstractEventLoop | None = None

    def now_ns(self) -> int:
        return self._now_ns

    async def sleep_until_ns(self, due_ns: int) -> None:
        """Returns at once where `due_ns` has passed already."""
        await checkpoint()
        if due_ns <= self._now_ns:
            return
        self._threads = current_default_thread_limiter()
        awoken = asyncio.get_running_loop().create_future()
        self._sleepers[awoken] = due_ns
        self._watch()
        try:
            await awoken
        finally:
            self._sleepers.pop(awoken, None)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Time stands still inside."""
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1
            if self._sleepers and not self._busy:
                self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        if self._watching is not loop:
            self._watching, self._idle_turns = loop, 0
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._sleepers or self._busy:
            self._watching = None  # the next sleeper, or the end of `busy`, starts it again
        elif self._threads.borrowed_tokens:
            self._idle_turns = 0
            loop.call_later(self._THREAD_POLL_SECONDS, self._turn, loop)
        else:
            # asyncio has no public way to ask whether any callback is ready.
            ready: Any = vars(loop)["_ready"]
            self._idle_turns = 0 if ready else self._idle_turns + 1
            if self._idle_turns == self._IDLE_TURNS:
                self._idle_turns = 0
                self._jump()
            loop.call_soon(self._turn, loop)

    def _jump(self) -> None:
        self._now_ns = min(self._sleepers.values())
        due = [awoken for awoken, due_ns in self._sleepers.items() if due_ns == self._now_ns]
        for awoken in due:
            del self._sleepers[awoken]
            if not awoken.done():
                awoken.set_result(None)
