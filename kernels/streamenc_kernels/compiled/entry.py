"""Entry: the interpreter as machine code, compiled once for a processor and then kept on disk.

numba keeps it beside the source, or in the user's cache folder where it may not write there;
NUMBA_CACHE_DIR names another place. What it reads there it runs: so where others may write, it is
compiled in each process instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamenc.trust.privatefolder import check_private

log = logging.getLogger(__name__)
SIGNATURE = "int64(int64, int64, int64, int64, int64, int64)"
LOCK_FILE = "streamenc_kernels.compiled.lock"
# What is said to whoever waits for it the first time.
COMPILING = "compiling the steps of models for this processor, once; it takes up to a minute"

_turn = threading.Lock()
_entry: Any = None


class CannotCompile(RuntimeError):
    """numba failed to compile what should compile."""


def why_not_compiled() -> str:
    """Why nothing can be compiled here; "" where it can."""
    if importlib.util.find_spec("numba") is None:
        return "numba is missing: pip install 'streamenc[cpu]'"
    # numba itself is imported once there is something to compile.
    disabled = os.environ.get("NUMBA_DISABLE_JIT", "") not in ("", "0")
    return "NUMBA_DISABLE_JIT is set" if disabled else ""


def entry() -> Any:
    """The function that runs programs: `enter` of the interpreter.

    The first call in a process reads it from disk, in about a second; the first one on a machine
    compiles it. Threads and processes that want it meanwhile wait.

    Raises CannotCompile.
    """
    global _entry
    with _turn:
        if _entry is None:
            try:
                _entry = _made()
            except Exception as error:  # of numba and LLVM, which have many
                raise CannotCompile(f"numba fails to compile here: {error!r}") from error
    return _entry


def digest() -> int:
    """Of all that is compiled: a change in any of these files is another function on disk."""
    found = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        if path != Path(__file__):
            found.update(path.read_bytes())
    return int.from_bytes(found.digest()[:7], "big")


def _made() -> Any:
    from numba import njit

    from streamenc_kernels.compiled.interpreter import enter_function

    function = enter_function(digest())
    try:
        enter = njit(nogil=True, cache=True)(function)
        _check_place(Path(enter.stats.cache_path))
    except (RuntimeError, OSError) as error:  # no folder that we alone may write to
        log.warning(
            "%s, in each process: %s. Set NUMBA_CACHE_DIR to a folder that may be written to",
            *(COMPILING.replace(", once", ""), error),
        )
        enter = njit(nogil=True)(function)
        enter.compile(SIGNATURE)
        return enter
    if not _from_disk(enter):
        log.warning(COMPILING)
        started = time.perf_counter()
        with _alone(Path(enter.stats.cache_path)):
            _compile(enter)  # or read it, where another process was faster
        log.info("compiled in %.0f s", time.perf_counter() - started)
    enter.disable_compile()
    return enter


def _check_place(folder: Path) -> None:
    """Raises OSError where others may write what is run from there; beside the source, they could
    as well write that."""
    if folder.parent != Path(__file__).parent:
        check_private(folder)


def _from_disk(enter: Any) -> bool:
    """Whether numba had it on disk, whole."""
    from numba.core import event

    class Stop(Exception):
        """Instead of compiling."""

    class Listener(event.Listener):  # type: ignore[misc]  # numba has no types
        def on_start(self, event: Any) -> None:
            raise Stop

        def on_end(self, event: Any) -> None:
            pass

    try:
        with event.install_listener("numba:compile", Listener()):
            enter.compile(SIGNATURE)
    except Stop:
        return False
    except Exception as error:  # whatever unpickling damaged files raises
        log.warning("what numba kept in %s cannot be read: %r", enter.stats.cache_path, error)
        for path in Path(enter.stats.cache_path).glob("*.nb[ci]"):
            with contextlib.suppress(OSError):
                path.unlink()
        return False
    return True


def _compile(enter: Any) -> None:
    """Also where it cannot be kept."""
    try:
        enter.compile(SIGNATURE)
    except Exception as error:  # a full disk; damaged files that could not be removed
        if not enter.signatures:
            raise
        log.warning("what was compiled is not kept on disk: %s", error)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process is in here meanwhile, where the system has locks of files."""
    with contextlib.ExitStack() as stack:
        if importlib.util.find_spec("fcntl") is not None:
            import fcntl

            try:
                folder.mkdir(parents=True, exist_ok=True)
                held = stack.enter_context((folder / LOCK_FILE).open("ab"))
                fcntl.flock(held, fcntl.LOCK_EX)
            except OSError as error:
                log.info("other processes may compile at the same time: %s", error)
        yield
