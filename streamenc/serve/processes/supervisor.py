"""Supervisor: starts a server's engines and I/O processes, keeps them alive, and ends them."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from streamenc.errors import TransportError, UsageError
from streamenc.graph.interrupt import on_interrupt
from streamenc.serve.keyring import Key
from streamenc.serve.limits import Limits
from streamenc.serve.processes.child import CannotStart, Child
from streamenc.serve.processes.listening import Bind
from streamenc.serve.processes.runfolder import run_folder
from streamenc.serve.processes.workersetup import READY, WAITING, WorkerSetup

IO_PROCESS = (sys.executable, "-m", "streamenc.serve.processes.ioworker")
ENGINE = (sys.executable, "-m", "streamenc", "engine")
STILL_SECONDS = 15.0  # between two lines that say that models are still being loaded
# That I/O processes have the machine for themselves at first.
FIRST_SECONDS = 3.0
CLOSING_SECONDS, ENGINE_SECONDS = 1.5, 2.0
ENDED_AT_ONCE = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a server is to be.

    Attributes:
        models: As `load` takes them.
        devices: One engine for each.
        engine_options: Others of the command `engine`.
        drain_seconds: From the signal to the end.
    """

    models: Sequence[str]
    devices: Sequence[str] = ("auto",)
    engine_options: Sequence[str] = ()
    bind: Bind
    limits: Limits
    workers: int = 1
    store: Path
    keys: Sequence[Key] = ()
    origins: Sequence[str] = ()
    local: bool = True
    tls: tuple[Path, Path] | None = None
    drain_seconds: float = 10.0
    verbose: bool = False


class Supervisor:
    """Runs a server until a signal: SIGTERM and Ctrl-C drain it, another one ends it at once.

    Args:
        say: Told what comes about, in sentences.
        serving: Told the address, as soon as it can be connected to.
        io_process: The command that an I/O process is started with.
        engine: And an engine, less its address and options.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        say: Callable[[str], None],
        serving: Callable[[str], None],
        io_process: Sequence[str] = IO_PROCESS,
        engine: Sequence[str] = ENGINE,
    ) -> None:
        self._plan, self._say, self._serving = plan, say, serving
        self._io_process, self._engine = io_process, engine
        self._leaving, self._now = asyncio.Event(), asyncio.Event()
        self._interrupts = 0
        self._engines: list[Child] = []
        self._workers: list[Child] = []
        self._ready: set[str] = set()
        self._all_ready = asyncio.Event()

    async def run(self) -> int:
        """Gives the exit code.

        Raises:
            TransportError: Where the address is not to be had, or a process cannot be started.
        """
        allow_many_files()
        self._loop = asyncio.get_running_loop()
        with self._plan.bind.listen() as bound, run_folder() as folder:
            self._make_children(bound, folder)
            async with on_interrupt(self._interrupted):
                try:
                    return await self._run(self._plan.bind.url(bound, self._plan.tls is not None))
                finally:
                    for child in (*self._workers, *self._engines):
                        child.kill()
                    await asyncio.gather(*(c.gone() for c in (*self._workers, *self._engines)))

    async def _run(self, url: str) -> int:
        kept = [asyncio.create_task(child.keep(self._say)) for child in self._workers]
        kept += [asyncio.create_task(self._keep_engine(child)) for child in self._engines]
        telling = asyncio.create_task(self._tell(url))
        leaving = asyncio.create_task(self._leaving.wait())
        try:
            tasks = (*kept, telling, leaving)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            failed = [task.exception() for task in (*kept, telling) if task.done()]
            failed = [error for error in failed if error is not None]
            if not failed:
                return await self._drain()
        finally:
            for task in (*kept, telling, leaving):
                task.cancel()
            await asyncio.gather(*kept, telling, leaving, return_exceptions=True)
        return _gave_up(failed[0])

    async def _keep_engine(self, engine: Child) -> None:
        """From when the server answers: loading models takes all of a machine."""
        with suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SECONDS):
                for worker in self._workers:
                    await worker.up.wait()
        await engine.keep(self._say)

    async def _tell(self, url: str) -> None:
        began = time.monotonic()
        for worker in self._workers:
            await worker.up.wait()
        self._serving(url)
        what, where = ", ".join(self._plan.models), ", ".join(self._plan.devices)
        self._say(f"loading {what} on {where}")
        while not self._all_ready.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_ready.wait(), STILL_SECONDS)
            if not self._all_ready.is_set():
                self._say(f"still loading, for {time.monotonic() - began:.0f} s")
        seconds = time.monotonic() - began
        self._say(f"ready after {seconds:.1f} s; {self._plan.limits.sessions} sessions at most")
        await self._leaving.wait()

    def _interrupted(self) -> None:
        """In a signal's handler, which by itself would not wake the event loop."""
        event = self._now if self._interrupts else self._leaving
        self._interrupts += 1
        self._loop.call_soon_threadsafe(event.set)

    async def _drain(self) -> int:
        """Ends all in the time that it may take; what is not through by then is killed."""
        seconds = self._plan.drain_seconds
        closing = _closing_seconds(seconds)
        ends_at = self._loop.time() + seconds - closing / 3
        self._say(f"ending: no new sessions, and {seconds:g} s at most for those that are open")
        for children, most in (
            (self._workers, seconds),
            # Nothing of them is of use any more.
            (self._engines, ENGINE_SECONDS),
        ):
            for child in children:
                child.tell_to_end()
            gone = asyncio.gather(*(child.gone() for child in children))
            now = asyncio.create_task(self._now.wait())
            left = max(0.0, ends_at - self._loop.time())
            await asyncio.wait(
                (gone, now), timeout=min(most, left), return_when=asyncio.FIRST_COMPLETED
            )
            now.cancel()
            late = [child.name for child in self._workers if child.alive]
            for child in children:
                child.kill()
            await gone
            if self._now.is_set():
                self._say("ended at once, by a second signal")
                return ENDED_AT_ONCE
            if late:
                self._say(f"{', '.join(late)} did not end in time")
        return 0

    def _make_children(self, bound: socket.socket, folder: Path) -> None:
        plan = self._plan
        engines = [folder / f"engine-{number}" for number in range(len(plan.devices))]
        siblings = [str(folder / f"io-{number}") for number in range(plan.workers)]
        each = -(-plan.limits.sessions // len(plan.devices))
        for device, path in zip(plan.devices, engines, strict=True):
            command = [*self._engine, f"ipc://{path}", "--device", device, "--sessions", str(each)]
            for model in plan.models:
                command += ["-m", model]
            command += ["--until-eof", "--quiet", *plan.engine_options]
            name = "the engine" if len(engines) == 1 else f"the engine on {device}"
            self._engines.append(Child(name, command, path=str(path)))
        seconds = plan.drain_seconds - _closing_seconds(plan.drain_seconds)
        for number in range(plan.workers):
            setup = WorkerSetup(
                number=number,
                descriptor=bound.fileno(),
                engines=[f"ipc://{path}" for path in engines],
                siblings=siblings,
                tally=str(folder / "tally"),
                limits=plan.limits,
                store=str(plan.store),
                keys=list(plan.keys),
                origins=list(plan.origins),
                local=plan.local,
                drain_seconds=seconds,
                tls=None if plan.tls is None else (str(plan.tls[0]), str(plan.tls[1])),
                verbose=plan.verbose,
            )
            name = f"I/O process {number}"
            self._workers.append(
                Child(
                    name,
                    self._io_process,
                    feed=msgspec.json.encode(setup) + b"\n",
                    descriptors=[bound.fileno()],
                    heard=self._hear(name),
                )
            )

    def _hear(self, name: str) -> Callable[[bytes], None]:
        def heard(line: bytes) -> None:
            if line == READY:
                self._ready.add(name)
                if len(self._ready) == len(self._workers):
                    self._all_ready.set()
            elif line in (WAITING, b""):
                self._ready.discard(name)

        return heard


def _closing_seconds(drain_seconds: float) -> float:
    """Of the time that draining may take: what is left for sockets and processes to end in."""
    return min(CLOSING_SECONDS, drain_seconds / 2)


def _gave_up(failure: BaseException | None) -> int:
    """The exit code of a process that could not be started, and has said why; raises otherwise."""
    if isinstance(failure, CannotStart) and failure.code in (1, 2):
        return failure.code
    if isinstance(failure, CannotStart):
        raise TransportError(str(failure))
    assert failure is not None
    raise failure


def all_devices() -> list[str]:
    """GPUs that torch can use, or the CPU; found by another process, as this needs no torch.

    Raises:
        UsageError: Where torch cannot tell.
    """
    program = (
        "import json; from streamenc.registry import compute_devices; "
        "print(json.dumps([d.name for d in compute_devices() if not d.cannot]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        raise UsageError("--device all: torch cannot tell which there are; name them one by one")
    names: list[str] = json.loads(done.stdout)
    return [name for name in names if name != "cpu"] or ["cpu"]


def allow_many_files() -> None:
    """Each connection is one: as many as the system lets us have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
