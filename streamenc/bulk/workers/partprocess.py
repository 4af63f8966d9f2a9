"""PartProcess: a worker as the run sees it: started, told, heard, and ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from typing import IO

from streamenc.bulk.partwork import Done
from streamenc.bulk.workers.messages import (
    Began,
    Failure,
    Order,
    Report,
    Take,
    line_of,
    read_report,
)
from streamenc.errors import WireError
from streamenc.graph.interrupt import how_ended

logger = logging.getLogger("streamenc.bulk")

COMMAND = (sys.executable, "-m", "streamenc.bulk.workers.partchild")
READ_BYTES = 1 << 16
MOST_LINES, MOST_LETTERS = 100, 1000  # of what a worker writes to standard error


class PartProcess:
    """One worker.

    Args:
        number: For people.
        device: That it computes on.

    Attributes:
        loading: Whether it was told to load the models.
        ready: Whether they are loaded.
        order: The part that it does.
        in_hand: Keys of items that were begun and are not behind, in their order.
        heard_at: When it said something last, by time.monotonic.
        why: Why it is killed, in words; "" as long as it is not.
    """

    def __init__(self, number: int, device: str) -> None:
        self.number, self.device = number, device
        environment = dict(os.environ)
        if device == "cpu":
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            # Ctrl-C is for the run; and what a worker starts is ended with it.
            process_group=0,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._orders: IO[bytes] = self._process.stdin
        self.reports: IO[bytes] = self._process.stdout
        self.errors: IO[bytes] = self._process.stderr
        for pipe in (self.reports, self.errors):
            os.set_blocking(pipe.fileno(), False)
        self._report, self._said = b"", b""
        self._lines = 0
        self._last = ""
        self._behind = 0
        self.loading = self.ready = False
        self.order: Take | None = None
        self.in_hand: deque[str] = deque()
        self.heard_at = time.monotonic()
        self.why = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def tell(self, order: Order) -> None:
        if isinstance(order, Take):
            self.order, self._behind = order, 0
            self.in_hand.clear()
        self.heard_at = time.monotonic()
        left = memoryview(line_of(order))
        with suppress(BrokenPipeError):  # it died, which is seen next
            while left:
                left = left[os.write(self._orders.fileno(), left) :]

    def hear(self) -> list[Report]:
        """What it said since."""
        found: list[Report] = []
        while some := _read(self.reports):
            *lines, self._report = (self._report + some).split(b"\n")
            try:
                found += map(read_report, lines)
            except WireError as error:  # what it loaded wrote there, or its memory is spoiled
                self.kill(str(error))
                break
        for report in found:
            self.heard_at = time.monotonic()
            if isinstance(report, Began):
                while self._behind < report.behind and self.in_hand:
                    self._behind += 1
                    self.in_hand.popleft()
                self.in_hand.append(report.key)
            elif isinstance(report, Done | Failure):
                self.order = None
                self.in_hand.clear()
        return found

    def pass_on(self) -> None:
        """What it wrote to standard error, as warnings; a bounded number of bounded lines."""
        while some := _read(self.errors):
            *lines, self._said = (self._said + some).split(b"\n")
            self._said = self._said[-MOST_LETTERS:]
            for line in lines:
                self._warn(line)

    def how_it_ended(self) -> str:
        """In words, once it has."""
        code = self._process.wait()
        self.pass_on()
        self._warn(self._said)
        if self.why:
            return self.why
        last = f": {self._last}" if code >= 0 and self._last else ""
        return f"its process {how_ended(code)}{last}"

    def kill(self, why: str = "") -> None:
        """At once, with what it started."""
        self.why = why
        if not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def close(self, wait_seconds: float = 0.0) -> None:
        """Waits for its end, or sees to it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(wait_seconds)
        self.kill(self.why)
        self._process.wait()
        for pipe in (self._orders, self.reports, self.errors):
            with suppress(BrokenPipeError):
                pipe.close()

    def _warn(self, line: bytes) -> None:
        text = line[:MOST_LETTERS].decode(errors="replace").rstrip()
        if not text:
            return
        self._last = text
        self._lines += 1
        if self._lines <= MOST_LINES:
            logger.warning("worker %d: %s", self.number, text)
        elif self._lines == MOST_LINES + 1:
            logger.warning("worker %d: says more, which is left out", self.number)


def _read(pipe: IO[bytes]) -> bytes:
    try:
        return os.read(pipe.fileno(), READ_BYTES)
    except BlockingIOError:
        return b""
