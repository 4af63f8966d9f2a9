"""Whether this thread is tracing a step into a static graph.

torch has such a flag, but one for the whole process: streams that run meanwhile in other threads
would take the paths that are meant for graphs alone.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

# One thread at a time. No thread-local variable: torch.compile would not look into it.
_turn = threading.RLock()
_thread: int | None = None


def exporting() -> bool:
    """Whether what runs now becomes part of a graph, for any number of lanes and any runtime."""
    return _thread is not None and _thread == threading.get_ident()


@contextlib.contextmanager
def while_exporting() -> Iterator[None]:
    """Marks this thread as exporting; waits for another that is, as torch traces in one only."""
    global _thread
    with _turn:
        _thread = threading.get_ident()
        try:
            yield
        finally:
            _thread = None
