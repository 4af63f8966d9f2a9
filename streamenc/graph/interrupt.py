"""Ctrl-C and SIGTERM as a call, for as long as a context lasts; and how a process ended."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType

import anyio

# `timeout` and terminals signal a process and its group: that is one wish, not two.
ONE_WISH_SECONDS = 0.3


@asynccontextmanager
async def on_interrupt(call: Callable[[], None]) -> AsyncIterator[None]:
    """SIGINT and SIGTERM call `call` inside, and do what they did before after that.

    Those that follow one within 0.3 s count as one with it, so the end waits for them.

    Elsewhere than in the main thread nothing is changed: Python allows no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    called_at = -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal called_at
        now = time.monotonic()
        if now - called_at > ONE_WISH_SECONDS:
            called_at = now
            call()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(max(0, called_at + ONE_WISH_SECONDS - time.monotonic()))
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def how_ended(code: int) -> str:
    """Of a process, in words: "was ended by SIGKILL (did the memory run out?)".

    code  As `subprocess` has it: negative for a signal.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = " (did the memory run out?)" if -code == signal.SIGKILL else ""
    return f"was ended by {name}{why}"
