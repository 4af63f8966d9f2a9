"""A thread of one node, for calls that block."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import anyio

T = TypeVar("T")
_Call = tuple[
    asyncio.AbstractEventLoop, "asyncio.Future[Any]", contextvars.Context, Callable[[], Any]
]
_Calls = SimpleQueue[_Call | None]


class WorkerAbandoned(RuntimeError):
    """The call did not return in time, and its thread was left behind."""


class Worker:
    """One thread that makes one call at a time, in order, away from the event loop.

    Each blocking node has its own, so none waits for another's (as in a pool) and a device is
    always spoken to from the same thread. A cancelled caller waits until its call returned, so
    nothing is closed while it is being read or written; `abandon` ends that wait. The threads are
    daemons: one that never returns does not keep the process alive.

    The thread starts with the first call and ends with `close`; a later call starts another.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.abandoned = False
        self._calls: _Calls | None = None
        self._waits: set[anyio.CancelScope] = set()

    async def call(self, function: Callable[[], T]) -> T:
        """What `function()` returns or raises; WorkerAbandoned during and after `abandon`."""
        if self.abandoned:
            raise WorkerAbandoned(f"the thread of {self.name} was left behind in an earlier call")
        if self._calls is None:
            self._start()
        assert self._calls is not None
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._calls.put((loop, done, contextvars.copy_context(), function))
        with anyio.CancelScope(shield=True) as wait:
            self._waits.add(wait)
            try:
                return await done
            finally:
                self._waits.discard(wait)
        raise WorkerAbandoned(f"a call in the thread of {self.name} did not return in time")

    def close(self) -> None:
        """Ends the thread once it is through with its calls; may be called twice, or before any."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None

    def abandon(self) -> bool:
        """Leaves a call that is under way to itself, with its thread; False if there is none."""
        if not self._waits:
            return False
        self.abandoned = True
        for wait in self._waits:
            wait.cancel()
        self.close()
        return True

    def _start(self) -> None:
        self._calls = SimpleQueue()
        weakref.finalize(self, self._calls.put, None)
        threading.Thread(target=_work, args=(self._calls,), name=self.name, daemon=True).start()


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """What `function()` returns or raises, from a thread that a cancelled caller leaves behind."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    calls: _Calls = SimpleQueue()
    calls.put((loop, done, contextvars.copy_context(), function))
    calls.put(None)
    threading.Thread(target=_work, args=(calls,), daemon=True).start()
    return await done


def _work(calls: _Calls) -> None:
    while (call := calls.get()) is not None:
        loop, done, context, function = call
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(function)
        except StopIteration as stop:  # which no future can carry
            error = RuntimeError(f"StopIteration came out of {function}")
            error.__cause__ = stop
        except BaseException as raised:  # whatever it is, it belongs to the caller
            error = raised
        try:
            loop.call_soon_threadsafe(_settle, done, result, error)
        except RuntimeError:  # the loop was closed: nobody waits any more
            return
        del call, loop, done, context, function, result, error


def _settle(done: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if done.cancelled():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
