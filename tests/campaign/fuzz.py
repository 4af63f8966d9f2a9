"""`fuzz`: hostile inputs at all targets, each in a child process with limits."""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaign.tally import Tally, plain, print_tallies, write_part
from tests.campaign.target import GUIDED, case_of, open_target
from tests.campaign.watched import watch

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
OUTPUT = ROOT / "campaign-output"
HANG_SECONDS = 20.0
START_SECONDS = 600.0  # the first one on a machine may have steps to compile
# A target that ends so many processes has said enough.
MOST_LOST = 20
DEFAULT_MINUTES = 3.0


@dataclass
class Plan:
    """What is asked of each target.

    Attributes:
        count, seconds: the bounds of one target; the first that is reached ends it.
        keep: faults go into the corpus too.
    """

    count: int
    seconds: float
    seed: int
    first: int
    guided: bool
    output: Path
    keep: bool


@dataclass
class Child:
    """One target at work, in one process after the other when cases end them."""

    tally: Tally
    plan: Plan
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    pipe: int = -1
    buffer: bytes = b""
    # The case that has begun and not ended, and since when the process says nothing.
    number: int | None = None
    silent_since: float = 0.0
    ready: bool = False
    begun: float = 0.0
    spent: float = 0.0
    lost: int = 0
    killed: bool = False
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"

    @property
    def current(self) -> Path:
        return self.folder / "current"

    def start(self) -> None:
        work = Path(tempfile.mkdtemp(dir=self.folder))
        reading, writing = os.pipe()
        command = [sys.executable, "-m", "tests.campaign.fuzzchild", self.tally.target]
        command += [str(writing), str(self.current), "--seed", str(self.plan.seed)]
        command += ["--first", str(self.plan.first + self.tally.cases)]
        command += ["--count", str(self.plan.count - self.tally.cases)]
        if self.plan.seconds != float("inf"):
            command += ["--seconds", str(max(0.1, self.plan.seconds - self.spent))]
        if self.plan.guided:
            command += ["--guided", str(self.plan.output / "guided" / self.tally.target)]
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=work,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(writing,),
                start_new_session=True,  # Ctrl-C is for the parent
            )
        os.close(writing)
        self.pipe, self.buffer = reading, b""
        self.number, self.ready, self.killed = None, False, False
        self.silent_since = time.monotonic()

    def read(self) -> bool:
        """Takes what it told; whether there may be more."""
        said = os.read(self.pipe, 1 << 16)
        *lines, self.buffer = (self.buffer + said).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))
        return bool(said)

    def _hear(self, told: Any) -> None:
        self.silent_since = time.monotonic()
        if told == "ready":
            self.ready, self.begun = True, time.monotonic()
        elif isinstance(told, int):
            self.number = told
        else:
            assert self.number is not None
            kind = self.tally.add(self.number, told)
            if told["faults"]:
                data = self.folder / f"fault-{self.number}"
                if kind:
                    self._keep(data, kind)
                data.unlink()
            self.number = None

    def watch(self) -> None:
        """Ends a process that hangs: first so that it says where, then for good."""
        assert self.process is not None
        allowed = HANG_SECONDS if self.ready else START_SECONDS
        silent = time.monotonic() - self.silent_since
        if silent > allowed + 3:
            os.killpg(self.process.pid, signal.SIGKILL)
        elif silent > allowed and not self.killed:
            self.killed = True
            self.process.send_signal(signal.SIGABRT)

    def ended(self) -> bool:
        """After its pipe was closed: counts what ended it; whether the target is done."""
        assert self.process is not None
        code = self.process.wait()
        os.close(self.pipe)
        if self.ready:
            self.spent += time.monotonic() - self.begun
        if not self.ready:
            self.tally.note = f"did not start, {_ending(code)}: {self._said()}"
            return True
        if self.number is not None:
            seconds = time.monotonic() - self.silent_since
            what = f"hang of {HANG_SECONDS:g} s" if self.killed else f"crash, {_ending(code)}"
            said = f"{what}{self._where()}"
            kind = self.tally.lost(self.number, said, hung=self.killed, seconds=seconds)
            if kind:
                self._keep(self.current, kind)
            self.lost += 1
        elif code not in (0, None) and not self.plan.guided:
            self.tally.note = f"ended between two cases, {_ending(code)}: {self._said()}"
            return True
        if self.lost >= MOST_LOST:
            self.tally.note = f"given up after {self.lost} processes that were lost"
            return True
        return self.tally.cases >= self.plan.count or self.spent >= self.plan.seconds - 0.5

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _keep(self, data: Path, kind: str) -> None:
        """The input of a new kind of fault, as a file of its own."""
        word = "".join(letter if letter.isalnum() else "-" for letter in kind)[:60].strip("-")
        folders = [self.plan.output / self.tally.target]
        if self.plan.keep:
            folders.append(CORPUS / self.tally.target)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data, folder / word)

    def _said(self) -> str:
        said = self.log.read_bytes().decode(errors="replace")
        return said.partition("\nExtension modules:")[0][-1500:].strip()

    def _where(self) -> str:
        """The innermost lines of streamenc that faulthandler wrote."""
        lines = self.log.read_bytes().decode(errors="replace").splitlines()
        places = [line.strip() for line in lines if line.lstrip().startswith("File ")]
        ours = [place for place in places if "streamenc" in place] or places
        return f" at {ours[0]}" if ours else ""


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def run(given: argparse.Namespace) -> int:
    if given.case is not None or given.input is not None:
        return _one(given)
    names = [name for name in given.only if name in GUIDED or not given.guided]
    minutes = given.minutes or (None if given.cases else DEFAULT_MINUTES)
    processes = max(1, min(given.processes, len(names)))
    plan = Plan(
        count=given.cases or sys.maxsize,
        seconds=minutes * 60 * processes / len(names) if minutes else float("inf"),
        seed=given.seed,
        first=given.first,
        guided=given.guided,
        output=given.output.resolve(),
        keep=given.keep,
    )
    machine = _machine() if given.out else {}
    tallies: list[Tally] = []
    begun = time.monotonic()
    interrupted = False
    try:
        campaign(names, plan, processes, tallies)
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.monotonic() - begun
    cases = sum(tally.cases for tally in tallies)
    print_tallies(tallies, f"{cases:,} cases, {seconds:.0f} s{', interrupted' * interrupted}")
    if given.out:
        found = {"seed": given.seed, "seconds": round(seconds), "targets": plain(tallies)}
        write_part(given.out, "guided" if given.guided else "fuzz", found, machine)
    if interrupted:
        return 130
    return int(any(tally.faults or tally.note for tally in tallies))


def campaign(names: list[str], plan: Plan, processes: int, tallies: list[Tally]) -> None:
    """Runs the cases of all targets, some targets at a time; `tallies` grows meanwhile."""
    waiting = list(names)
    children: dict[int, Child] = {}
    with (
        tempfile.TemporaryDirectory(prefix="campaign-", ignore_cleanup_errors=True) as temporary,
        selectors.DefaultSelector() as selector,
    ):

        def start(child: Child) -> None:
            child.start()
            children[child.pipe] = child
            selector.register(child.pipe, selectors.EVENT_READ)

        try:
            while waiting or children:
                while waiting and len(children) < processes:
                    name = waiting.pop(0)
                    folder = Path(temporary) / name
                    folder.mkdir()
                    tallies.append(Tally(name))
                    start(Child(tallies[-1], plan, folder))
                for key, _ in selector.select(timeout=1.0):
                    child = children[key.fd]
                    if child.read():
                        continue
                    selector.unregister(key.fd)
                    del children[key.fd]
                    if not child.ended():
                        start(child)
                for child in children.values():
                    child.watch()
        finally:
            for child in children.values():
                child.kill()


def _one(given: argparse.Namespace) -> int:
    """One case in this process, and all that is known of it."""
    [name] = given.only if len(given.only) == 1 else [None]
    if name is None:
        print("one case is one of one target: say --only TARGET", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        target = open_target(name, Path(folder))
        if given.input is not None:
            data = given.input.read_bytes()
        else:
            data = case_of(target, name, given.seed, given.case)
            place = given.output / name / f"case-{given.case}"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            print(f"{len(data)} bytes: {place}")
        outcome = watch(target, data)
        faults = outcome.faults(target)
        print(f"{outcome.ending}, {outcome.seconds:.3f} s, {outcome.peak_bytes / 2**20:.1f} MB")
        print(outcome.error)
        for fault in faults:
            print(f"FAULT: {fault}")
        if outcome.ending == "foreign":
            # Once more, with all of its traceback.
            target.take(data)
    return int(bool(faults))


def _machine() -> dict[str, Any]:
    from bench.harness import machine

    asked: Callable[[], dict[str, Any]] = machine
    return asked()
