"""What a process may use of the machine, and what it used."""

from __future__ import annotations

import os
import resource
import sys

KIBIBYTES = 1 if sys.platform == "darwin" else 1024  # in which the system counts memory


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_bytes() -> int:
    """This process's memory at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBIBYTES
