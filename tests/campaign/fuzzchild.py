"""A child process that gives cases of one target to it, and tells how each ended.

It tells by lines of JSON through a pipe: a number when a case begins, and an object when it has
ended. A parent that hears of no end knows what to do.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tests.campaign.target import Target, case_of, open_target
from tests.campaign.watched import watch

# What it may allocate beside what it has when it is ready: a bomb is to hurt nobody else.
ALLOCATES_BYTES = 6 << 30
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
GUIDED_SEEDS = 200


class Cases:
    """Gives cases to a target and tells of them."""

    def __init__(self, target: Target, pipe: int, current: Path) -> None:
        self.target, self.pipe, self.current = target, pipe, current

    def __call__(self, number: int, data: bytes) -> None:
        # Who ends this process finds here what it was at.
        self.current.write_bytes(data)
        self._tell(number)
        outcome = watch(self.target, data)
        if outcome.faults(self.target) and outcome.ending != "foreign":
            # The first case that needs it pays for an import, and others for what is cached.
            outcome = watch(self.target, data)
        if outcome.faults(self.target):
            # The next case is written over `current` before anybody has looked at this one.
            self.current.with_name(f"fault-{number}").write_bytes(data)
        self._tell(
            {
                "ending": outcome.ending,
                "error": outcome.error,
                "seconds": outcome.seconds,
                "peak_bytes": outcome.peak_bytes,
                "faults": outcome.faults(self.target),
            }
        )

    def _tell(self, said: object) -> None:
        os.write(self.pipe, json.dumps(said).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("pipe", type=int)
    parser.add_argument("current", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=sys.maxsize)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--guided", type=Path, help="a folder that keeps inputs for atheris")
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    faulthandler.enable()
    with _instrumented(given.guided is not None):
        target = open_target(given.target, Path.cwd())
    _limit()
    cases = Cases(target, given.pipe, given.current)
    os.write(given.pipe, b'"ready"\n')
    if given.guided:
        _guided(cases, given)
    ends = time.monotonic() + given.seconds
    for number in range(given.first, given.first + given.count):
        if time.monotonic() >= ends:
            break
        cases(number, case_of(target, given.target, given.seed, number))


@contextlib.contextmanager
def _instrumented(wanted: bool) -> Iterator[None]:
    """What is imported in the block tells atheris which branches it takes."""
    if not wanted:
        yield
        return
    import atheris

    with atheris.instrument_imports(include=["streamenc"]):
        yield


def _guided(cases: Cases, given: argparse.Namespace) -> None:
    """Inputs by coverage, until the time is over. Does not return: libFuzzer ends the process."""
    import atheris

    given.guided.mkdir(parents=True, exist_ok=True)
    for number in range(GUIDED_SEEDS):
        data = case_of(cases.target, given.target, given.seed, number)
        (given.guided / f"seed-{number}").write_bytes(data)
    count = given.first

    def one(data: bytes) -> None:
        nonlocal count
        cases(count, data)
        count += 1

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.1:
            return cases.target.case(rng)[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    seconds = "" if given.seconds == float("inf") else f"-max_total_time={int(given.seconds) + 1}"
    runs = "" if given.count == sys.maxsize else f"-runs={given.count}"
    # Time and memory are watched here; its own limits would end the run.
    options = ["-timeout=0", "-rss_limit_mb=0", "-max_len=65536", f"-seed={given.seed + 1}"]
    options += [option for option in (seconds, runs) if option]
    atheris.Setup([sys.argv[0], *options, str(given.guided)], one, custom_mutator=mutate)
    atheris.Fuzz()


def _limit() -> None:
    """Bounds on this process, and no core of 10 GB."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Path("/proc/self/status").open() as lines:
        now = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (now + ALLOCATES_BYTES,) * 2)


if __name__ == "__main__":
    main()
