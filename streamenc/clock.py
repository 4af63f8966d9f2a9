"""Clocks of the graph: the real one, and one for tests that jumps instead of waiting."""

from __future__ import annotations

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """What the graph and its nodes ask for the time and for a pause. Times are integer nanoseconds."""

    def now_ns(self) -> int: ...

    async def sleep_until_ns(self, due_ns: int) -> None: ...


class MonotonicClock:
    """The system's monotonic clock."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep_until_ns(self, due_ns: int) -> None:
        """Returns at once where `due_ns` has passed already."""
        await anyio.sleep(max(0, due_ns - self.now_ns()) / 1e9)
