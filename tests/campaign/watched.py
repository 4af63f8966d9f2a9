"""Watched: one case of a target, with what it cost and how it ended."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from streamenc.errors import StreamencError
from tests.campaign.target import Target


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        ending: "taken", "refused", or "foreign", an exception that is not of `streamenc.errors`.
        error: what was said; of a foreign one also where it was raised.
        seconds: CPU time of the process.
        peak_bytes: by how much the memory of the process rose above that of before.
    """

    ending: str
    error: str
    seconds: float
    peak_bytes: int

    def faults(self, target: Target) -> list[str]:
        """The promises that it broke, in words."""
        found = [self.error] if self.ending == "foreign" else []
        if self.seconds > target.seconds:
            found.append(f"{self.seconds:.1f} s of CPU time, {target.seconds:g} allowed")
        if self.peak_bytes > target.peak_bytes:
            mebibytes, allowed = self.peak_bytes >> 20, target.peak_bytes >> 20
            found.append(f"{mebibytes} MiB of memory, {allowed} allowed")
        return found


def watch(target: Target, data: bytes) -> Outcome:
    """Gives `data` to `target`, in this process."""
    ending, error = "taken", ""
    before = _reset_peak()
    begun = time.process_time()
    try:
        target.take(data)
    except StreamencError as refused:
        ending, error = "refused", str(refused)
    except (KeyboardInterrupt, SystemExit):
        raise
    except (
        BaseException
    ) as foreign:  # what is written in Rust raises panics, which are no Exception
        last = traceback.extract_tb(foreign.__traceback__)[-1]
        ending = "foreign"
        error = f"{type(foreign).__name__} in {Path(last.filename).name}:{last.lineno}: {foreign}"
    seconds = time.process_time() - begun
    return Outcome(ending, error[:1000], seconds, max(0, _peak() - before))


def _reset_peak() -> int:
    """Lets the kernel forget the highest memory of this process; what it has now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
