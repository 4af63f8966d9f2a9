"""The machine's cores while something is timed: what others use of them, what keeps them busy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

# A busy process looks now and then whether the one that started it is still there.
SPIN = """\
import os
if hasattr(os, "sched_setscheduler"):  # nobody gets a core beside one of the real-time classes
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""
# How long the system takes to spread processes over the cores that were stopped until now.
SPREAD_SECONDS = 0.05
# How much of a pause the threads of this process may compute in one that counts as still.
STILL = 0.1
STILL_IN_A_ROW = 2
MOST_PAUSES = 40


class Busy:
    """Processes that keep the cores busy; it starts as many as are asked for at most, stopped.

    A context manager: they are gone once it is left.
    """

    def __init__(self, most: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._working = most
        try:
            for _ in range(most):
                self._processes.append(subprocess.Popen([sys.executable, "-c", SPIN]))
            self.keep(0)
        except BaseException:  # also Ctrl-C: nobody else could end them
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def keep(self, count: int) -> None:
        """Lets so many of them work and stops the others."""
        if count == self._working:
            return
        for index, process in enumerate(self._processes):
            process.send_signal(signal.SIGCONT if index < count else signal.SIGSTOP)
        self._working = count
        time.sleep(SPREAD_SECONDS)

    def cpu_seconds(self) -> float:
        """What they have used so far; 0 where the system does not tell."""
        return sum(_cpu_seconds(process.pid) for process in self._processes)


class OthersCpu:
    """What share of the machine other processes use, as text: from when this was made, but for the
    times between `stop` and `go`.

    Args:
        busy: Processes that do not count as others.
    """

    def __init__(self, busy: Busy | None = None) -> None:
        self._busy = busy
        self._used = [0.0, 0.0, 0.0]
        self._start = self._now()
        self._running = True

    def __str__(self) -> str:
        if self._running:
            self.stop()
            self.go()
        if self._start is None:
            return "unknown"
        busy, own, wall = self._used
        share = max(0.0, busy - own) / max(wall * (os.cpu_count() or 1), 1e-9)
        return f"{min(share, 1.0):.0%}"

    def stop(self) -> None:
        now = self._now()
        if now is None or self._start is None:
            self._start = None
        else:
            self._used = [
                used + after - before
                for used, before, after in zip(self._used, self._start, now, strict=True)
            ]
        self._running = False

    def go(self) -> None:
        if self._start is not None:
            self._start = self._now()
        self._running = True

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds since some start: CPU of the whole machine, our own, and on the wall."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        user, nice, system, _, _, *rest = map(int, stat.read_text().split("\n")[0].split()[1:9])
        busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
        own = time.process_time() + (self._busy.cpu_seconds() if self._busy else 0.0)
        return busy, own, time.monotonic()


def settle(pause_seconds: float) -> bool:
    """Pauses until no thread of this process computes any more; gives whether that came about.

    Threads of a step spin for a while once it is done. They must not share the cores with the next
    contestant's.
    """
    if pause_seconds == 0:
        return True
    still = 0
    for _ in range(MOST_PAUSES):
        before = time.process_time()
        time.sleep(pause_seconds)
        still = still + 1 if time.process_time() - before <= STILL * pause_seconds else 0
        if still == STILL_IN_A_ROW:
            return True
    return False


def load_average() -> float | None:
    """Processes that ran or wanted to, over the last minute; None where nobody tells."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    # utime and stime, the 14th and 15th of all.
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")
