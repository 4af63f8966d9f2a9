"""Ctrl-C and SIGTERM as a call, for as long as a context lasts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def on_interrupt(call: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `call` inside, and do what they did before after that.

    Elsewhere than in the main thread nothing is changed: Python allows no handlers there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        call()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
