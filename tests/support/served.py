"""The command `streamenc serve` as a process, and what there is of it in /proc."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from websockets.exceptions import InvalidHandshake, InvalidStatus

from streamenc.io.network.websocket.livemessages import Resumed
from tests.support.rawsocket import RawSocket

MODULE = {"io": b"streamenc.serve.processes.ioworker", "engine": b"engine"}


@dataclass
class Command:
    """One that runs."""

    process: subprocess.Popen[str]
    url: str
    error: Path

    @property
    def websocket(self) -> str:
        return self.url.replace("http", "ws", 1)

    def said(self) -> str:
        """On standard error, up to now."""
        return self.error.read_text()

    def children(self, kind: str = "") -> set[int]:
        """Of a kind, "io" or "engine"; or all."""
        found = children_of(self.process.pid)
        if not kind:
            return found
        return {pid for pid in found if MODULE[kind] in arguments(pid)}

    def until(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        until(true, seconds)

    def ready(self) -> None:
        self.until(lambda: "ready after" in self.said())


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it did not come about"
        time.sleep(0.02)


def children_of(pid: int) -> set[int]:
    """Those that live: one that ended and was not waited for does not."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        state, parent = _stat(path)
        if parent == pid and state not in "ZX":
            found.add(int(path.parent.name))
    return found


def alive(pid: int) -> bool:
    return _stat(Path(f"/proc/{pid}/stat"))[0] not in "ZX"


def _stat(path: Path) -> tuple[str, int]:
    try:
        state, parent = path.read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return state, int(parent)


def arguments(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def libraries(pid: int) -> str:
    """What is loaded into it, among other things."""
    return Path(f"/proc/{pid}/maps").read_text()


@contextmanager
def command(folder: Path, *options: str) -> Iterator[Command]:
    """`streamenc serve OPTIONS` on any port, with a store in `folder`; it ends with the block."""
    error = folder / f"error-{time.monotonic_ns()}"
    program = [sys.executable, "-m", "streamenc", "serve", "--bind", "127.0.0.1:0", "--device"]
    program += ["cpu", "--store", str(folder / "store"), *options]
    with (
        error.open("w") as file,
        subprocess.Popen(program, stdout=subprocess.PIPE, stderr=file, text=True) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http"), error.read_text()
            yield Command(process, url, error)
        finally:
            process.kill()


async def resume_soon(socket: RawSocket, seconds: float = 60.0) -> Resumed:
    """Tries until the server is there again."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await socket.resume()
            except (OSError, EOFError, InvalidStatus, InvalidHandshake):
                pass
            except AssertionError as error:  # another answer than `resumed`
                if "engine_gone" not in str(error) and "ending" not in str(error):
                    raise
            await asyncio.sleep(0.1)
