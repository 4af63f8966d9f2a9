"""Phases that end in every way, for tests of what runs them. They need no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from bench.gpu.phase import Found, Phase
from bench.gpu.run import NO_DEVICE


def ends(phase: Phase) -> None:
    phase.facts(device="none", driver=None)
    phase.check("search", "a search", lambda: Found(1e-7, 1e-5))
    phase.timed("Times", "a step", lambda: [3.0, 1.0, 2.0], unit="ms a step", subject="search")


def raises(phase: Phase) -> None:
    phase.check("search", "before it raised", lambda: Found(1e-7, 1e-5))
    raise ValueError("no such instruction\nmore")


def fails(phase: Phase) -> None:
    def breaks() -> Found:
        raise RuntimeError("cannot launch\nmore")

    phase.check("ring", "a ring", breaks)
    phase.check("ring", "not a number", lambda: Found(float("nan"), 1e-5))
    phase.timed("Times", "a ring in time", lambda: [4.0], unit="ms a step", subject="ring")
    phase.timed("Times", "too large", _out_of_memory, unit="ms a step")


def _out_of_memory() -> list[float]:
    raise MemoryError("wanted 17 GB")


def hangs(phase: Phase) -> None:
    phase.write("Times", "before it hung")
    time.sleep(60)


def ignores(phase: Phase) -> None:
    """Hangs where even its own timer cannot end it, with a child of its own."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    phase.write("Times", "before it stopped", facts={"child": child.pid})
    os.kill(os.getpid(), signal.SIGSTOP)


def killed(phase: Phase) -> None:
    phase.write("Times", "before it was killed")
    os.kill(os.getpid(), signal.SIGKILL)


def loses(phase: Phase) -> None:
    def lost() -> Found:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    phase.check("ring", "the last", lost)
    phase.check("ring", "never made", lambda: Found())


def has_no_device(phase: Phase) -> None:
    sys.exit(NO_DEVICE)
