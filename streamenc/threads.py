"""Threads of short steps: one, in the calling thread alone; the process's own number stays.

In a step of some milliseconds torch's threads wait for each other longer than they compute: they
spin, and where other programs want the cores, a step takes its time slice many times over. OpenMP
and MKL keep a number of threads for each thread that calls them, so that a step can have one
without anybody else in the process noticing. torch offers its number for the process only, so the
libraries that it brings are asked themselves; where they cannot be found, its number holds.

Of a fork, the thread that goes on has one too: those with which it may have computed before did not
come along, and OpenMP would wait for them for ever.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from streamenc.errors import UsageError

if TYPE_CHECKING:
    from streamenc.spec import StreamSpec

SHORT_STEP_SECONDS = 0.04
_LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")

_count = 1


def set_short_step_threads(count: int) -> None:
    """How many threads short steps take in this process, 1 if never called; at most torch's own.

    Raises:
        UsageError: Where `count` is below 1.
    """
    global _count
    if count < 1:
        raise UsageError(f"threads are 1 or more; got {count}")
    _count = count


def is_short(spec: StreamSpec, hops: int) -> bool:
    """Whether steps of so many hops cover less than 40 ms."""
    rate = spec.input.rate
    # Without a Fraction in between, which takes as long as a layer of a small model.
    return spec.hop * hops * rate.denominator < SHORT_STEP_SECONDS * rate.numerator


def step_threads(spec: StreamSpec, hops: int) -> int:
    """How many threads a step of so many hops takes in the calling thread."""
    return min(_count, torch.get_num_threads()) if is_short(spec, hops) else torch.get_num_threads()


class StepThreads:
    """Within it, the calling thread computes with the number of threads that its steps take."""

    __slots__ = ("_before", "_mkl_before", "_short")

    def __init__(self, spec: StreamSpec, hops: int) -> None:
        self._short = is_short(spec, hops)
        self._before = 0

    def __enter__(self) -> None:
        if not self._short:
            return
        # Asking also lets torch take its number for this thread, which would undo ours later.
        before = torch.get_num_threads()
        library = _library()
        if before > _count and library is not None:
            library.omp_set_num_threads(_count)
            self._mkl_before = _set_mkl(library, _count)
            self._before = before

    def __exit__(self, *error: object) -> None:
        library = _library() if self._before else None
        if library is not None:
            library.omp_set_num_threads(self._before)
            _set_mkl(library, self._mkl_before)


@cache
def _library() -> ctypes.PyDLL | None:
    """torch's library, through which those that it is linked to are found; it is loaded already."""
    for name in _LIBRARIES:
        path = Path(torch.__file__).parent / "lib" / name
        if path.exists():
            library = ctypes.PyDLL(str(path))
            if hasattr(library, "omp_set_num_threads"):
                return library
    return None


def _after_fork() -> None:
    library = _library()
    # As above, torch takes its number before.
    if torch.get_num_threads() > 1 and library is not None:
        library.omp_set_num_threads(1)
        _set_mkl(library, 1)


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_after_fork)


def _set_mkl(library: ctypes.PyDLL, count: int) -> int:
    """Sets MKL's number for this thread, 0 for none of its own, and gives the one before."""
    # Processors of ARM have no MKL.
    function = getattr(library, "MKL_Set_Num_Threads_Local", None)
    return 0 if function is None else int(function(count))
