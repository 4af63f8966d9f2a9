"""Team: the thread that runs a program, and those of this process that help it.

Helpers are threads of their own, started when a program first wants them. Between steps they look
for work for a moment, which a step that follows at once meets awake, and sleep then. Whoever runs a
program waits for none of them: one that sleeps, or that the system does not let run, is one less.
Programs that run at the same time have one thread each, but for the first.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from streamenc.compiled.busycores import Alone, Pace, Took
from streamenc.compiled.weights import Array, aligned
from streamenc_kernels.compiled.entry import entry
from streamenc_kernels.compiled.instruction import SCRATCH_BYTES
from streamenc_kernels.compiled.interpreter import (
    BOARD_BYTES,
    HELPER_BYTES,
    HELPERS,
    MOST_HELPERS,
    PATIENCE,
    REPORT,
)

# A helper looks for work for so long before it sleeps: longer than any step does without it.
AWAKE_SECONDS = 100e-6
# The thread that runs a program waits so long for what others have claimed: as long as a piece
# takes.
PATIENCE_SECONDS = 50e-6
CALIBRATION_LOOKS = 2000
MOST_KEPT = 8
CLOSING_SECONDS = 1.0
WORD_BYTES = 8


@dataclass(slots=True)
class Needs:
    """What a program needs to run.

    scratch_bytes  Memory of each thread.
    alone          What its steps take with one thread, by lanes.
    """

    scratch_bytes: int
    alone: dict[int, Alone] = field(default_factory=dict)


class Team:
    """Threads that run programs; those of a process are `team`."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._board = aligned((BOARD_BYTES // WORD_BYTES,), np.int64)
        self._address = self._board.ctypes.data
        self._own = threading.local()
        self._running = threading.Lock()
        self._helpers: list[threading.Thread] = []
        self._asleep: deque[threading.Lock] = deque()
        self._active = self._closing = False
        self._looks = 0
        # What helpers may still read that were late with it.
        self._kept: list[Any] = []
        self.pace = Pace()

    @cached_property
    def enter(self) -> Any:
        """The interpreter. Raises CannotCompile."""
        return entry()

    def needs(self, ops: Array, lanes: int) -> Needs:
        """What a program needs to run on up to so many lanes."""
        return Needs(int(self.enter(ops.ctypes.data, len(ops), lanes, 0, 0, 0)))

    def run(
        self, ops: Array, lanes: int, threads: int, needs: Needs | None = None, keep: Any = None
    ) -> None:
        """Runs a program in the calling thread, with the help of others where that pays.

        threads  So many at most, this one too.
        needs    None where one thread with SCRATCH_BYTES will do.
        keep     What owns the memory that the program reads; helpers may be late with it.
        """
        scratch = self._scratch(SCRATCH_BYTES if needs is None else needs.scratch_bytes)
        if (
            threads == 1
            or needs is None
            or needs.scratch_bytes > SCRATCH_BYTES
            or not self._running.acquire(blocking=False)
        ):
            self._step(ops, lanes, 1, scratch)
            return
        try:
            alone = needs.alone.setdefault(lanes, Alone())
            start, computed = time.perf_counter(), time.thread_time()
            together = self.pace.together(alone, start) and not self._is_stuck()
            if together:
                self._gather(min(threads, MOST_HELPERS + 1) - 1)
                self._active = True
                self._wake()
            self._step(ops, lanes, threads if together else 1, scratch)
            end, computed = time.perf_counter(), time.thread_time() - computed
            help = None
            if together:
                pieces, helped, late = self._board[REPORT // WORD_BYTES :][:3].tolist()
                help = helped / max(pieces, 1)
                if late:
                    self._kept.append(keep)
            self.pace.note(alone, Took(end - start, computed, help), end)
        finally:
            self._active = False
            self._running.release()

    def close(self) -> None:
        """Ends the helpers; nobody runs a program any more."""
        self._closing = True
        self._wake()
        for helper in self._helpers:
            helper.join(CLOSING_SECONDS)

    def _step(self, ops: Array, lanes: int, threads: int, scratch: int) -> None:
        self.enter(ops.ctypes.data, len(ops), lanes, threads, self._address, scratch)

    def _scratch(self, size: int) -> int:
        """The address of this thread's own."""
        own = self._own
        if getattr(own, "size", -1) < size:
            own.size = max(size, SCRATCH_BYTES)
            own.scratch = aligned((own.size,), np.uint8)
            own.address = own.scratch.ctypes.data
        return int(own.address)

    def _is_stuck(self) -> bool:
        """Whether helpers are late with so much that others have to do without them."""
        if self._kept:
            first = HELPERS // WORD_BYTES
            if not self._board[first :: HELPER_BYTES // WORD_BYTES].any():
                self._kept.clear()
        return len(self._kept) >= MOST_KEPT

    def _gather(self, count: int) -> None:
        """Starts helpers, up to so many of them."""
        if not self._looks:
            per_second = _looks_per_second(self.enter)
            self._board[PATIENCE // WORD_BYTES] = int(PATIENCE_SECONDS * per_second)
            self._looks = int(AWAKE_SECONDS * per_second)
        while len(self._helpers) < count:
            index = len(self._helpers)
            helper = threading.Thread(
                target=self._help, args=(index,), name=f"streamenc-helper-{index}", daemon=True
            )
            self._helpers.append(helper)
            helper.start()

    def _wake(self) -> None:
        with suppress(IndexError):  # another was faster
            while self._asleep:
                self._asleep.pop().release()

    def _help(self, index: int) -> None:
        scratch = aligned((SCRATCH_BYTES,), np.uint8)
        board = self._address
        sleep = threading.Lock()
        sleep.acquire()
        while not self._closing:
            self.enter(0, self._looks, index, 0, board, scratch.ctypes.data)
            # Who runs a program says so before it wakes those that sleep, so that none sleeps
            # through it: either finds that out, or is woken.
            self._asleep.append(sleep)
            if self._active or self._closing:
                with suppress(ValueError):
                    self._asleep.remove(sleep)
                    continue
            sleep.acquire()


def cores() -> int:
    """How many cores this process may use: those it is bound to, or what a container's quota
    comes to."""
    bound = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with suppress(OSError, ValueError):  # no such quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        bound = min(bound, int(quota) // int(period))
    return max(1, bound)


def _looks_per_second(enter: Any) -> float:
    board = aligned((BOARD_BYTES // WORD_BYTES,), np.int64)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        enter(0, CALIBRATION_LOOKS, 0, 0, board.ctypes.data, board.ctypes.data)
        taken.append(time.perf_counter() - start)
    return CALIBRATION_LOOKS / min(taken)


_team = Team()


def team() -> Team:
    """The team of this process. Raises CannotCompile."""
    assert _team.enter
    return _team


def _close() -> None:
    _team.close()


def _after_fork() -> None:
    # Of a fork only the thread that goes on came along.
    _team._begin()


atexit.register(_close)
if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(after_in_child=_after_fork)
