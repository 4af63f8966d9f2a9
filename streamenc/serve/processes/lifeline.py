"""Lifeline: a pipe from the supervisor that a child reads; its end means that there is none now.

A supervisor that is killed says nothing, but the system closes its end of the pipe.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

# Within which a child writes away what must not be lost; then it ends, whatever it is doing.
LEFT_SECONDS = 5.0
LINE_BYTES = 1 << 20


def first_line(descriptor: int = 0) -> bytes:
    """What the supervisor says first: one line; b"" where it is gone."""
    line = bytearray()
    while not line.endswith(b"\n"):
        some = os.read(descriptor, 1 << 16)
        if not some or len(line) > LINE_BYTES:
            return b""
        line += some
    return bytes(line)


def end_with_parent(descriptor: int = 0) -> None:
    """Sends this process SIGTERM once the other end of the pipe is closed, and soon ends it."""
    threading.Thread(
        target=_watch, args=(descriptor,), name="streamenc-lifeline", daemon=True
    ).start()


def _watch(descriptor: int) -> None:
    while os.read(descriptor, 1 << 10):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(LEFT_SECONDS)
    sys.stderr.flush()
    os._exit(1)
