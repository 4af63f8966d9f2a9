"""A server's processes: replaced when they die, and none left behind, however it ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import pytest

pytest.importorskip("websockets", reason="needs the extra serve")
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamenc.serve.processes.runfolder import PREFIX
from tests.support.served import alive, children_of, until

SUPERVISE = (sys.executable, "-m", "tests.serve.processes.standin", "supervise")


@dataclass
class Supervised:
    """A server of stand-ins."""

    process: subprocess.Popen[str]
    url: str
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def children(self) -> set[int]:
        return children_of(self.process.pid)

    def who(self) -> tuple[str, int]:
        """An I/O process that answers: its number and its id."""
        with urlopen(f"{self.url}/who", timeout=20) as response:
            number, pid = response.read().decode().split()
        return number, int(pid)

    def until(self, true: Callable[[], object], seconds: float = 30.0) -> None:
        until(true, seconds)

    def ended(self, seconds: float) -> int:
        """Its exit code, and nothing of it is left."""
        code = self.process.wait(seconds)
        assert not list(self.folder.glob(f"{PREFIX}*"))
        return code

    def said(self) -> str:
        return (self.folder / "error").read_text()

    def asking(self) -> connect:
        address = self.url.replace("http", "ws") + "/v1/stream"
        return connect(address, subprotocols=["streamenc.v1"])  # type: ignore[list-item]


@contextmanager
def supervised(folder: Path, **plan: object) -> Iterator[Supervised]:
    (folder / "store").mkdir()
    command = [*SUPERVISE, str(folder / "store"), json.dumps(plan)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    with (
        (folder / "error").open("w") as error,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=error, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield Supervised(process, process.stdout.readline().strip(), folder)
        finally:
            process.kill()


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paths of sockets are short."""
    return tmp_path_factory.mktemp("s")


def test_what_dies_is_replaced(short: Path) -> None:
    with supervised(short, workers=2) as server:
        server.until(lambda: len(server.children) == 3)
        (folder,) = short.glob(f"{PREFIX}*")
        assert folder.stat().st_mode & 0o777 == 0o700
        server.until(lambda: (folder / "engine-0").exists() and "ready after" in server.said())
        first = server.children
        number, pid = server.who()
        os.kill(pid, signal.SIGKILL)
        server.until(lambda: pid not in server.children and len(server.children) == 3)
        server.until(lambda: server.who()[0] == number)
        assert server.who()[1] != pid
        (engine,) = {
            child
            for child in server.children & first
            if b"engine" in Path(f"/proc/{child}/cmdline").read_bytes()
        }
        os.kill(engine, signal.SIGKILL)
        server.until(lambda: engine not in server.children and len(server.children) == 3)
        server.process.send_signal(signal.SIGTERM)
        assert server.ended(3.5) == 0
        said = server.said()
    assert f"I/O process {number} was ended by SIGKILL" in said
    assert "the engine was ended by SIGKILL" in said
    assert "loading nano on auto\n" in said
    # Those that ended as they should have closed their services.
    assert len(list((short / "store").iterdir())) == 2


@pytest.mark.parametrize("second", [False, True])
def test_draining(short: Path, second: bool) -> None:
    """In three seconds, or at once; nobody new is let in, and who is there is told."""

    async def main(server: Supervised) -> None:
        async with asyncio.timeout(60), server.asking() as client:
            await client.send("here")
            await client.recv()
            await asyncio.to_thread(server.until, lambda: len(server.children) == 2)
            children = server.children
            began = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            while True:
                try:
                    async with server.asking():
                        await asyncio.sleep(0.01)
                except InvalidStatus as error:
                    assert error.response.status_code == 503
                    assert error.response.headers["Retry-After"] == "5"
                    break
            await client.send("still here")
            assert await client.recv() == "still here"
            if second:
                await asyncio.sleep(max(0.0, began + 0.4 - time.monotonic()))
                server.process.send_signal(signal.SIGINT)
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert await asyncio.to_thread(server.ended, 10) == (130 if second else 0)
            took = time.monotonic() - began
            assert took < 2.5 if second else 1.4 < took < 3.2, took
            assert not any(map(alive, children))

    with supervised(short) as server:
        asyncio.run(main(server))
        said = server.said()
    assert ("ended at once" in said) is second
    assert len(list((short / "store").iterdir())) == (0 if second else 1)


def test_a_supervisor_that_is_killed_leaves_nothing(short: Path) -> None:
    with supervised(short, models=["stubborn"]) as server:
        server.until(lambda: len(server.children) == 2)
        (folder,) = short.glob(f"{PREFIX}*")
        server.until(lambda: (folder / "engine-0").exists())
        children = server.children
        server.process.kill()
        server.process.wait()
        # The I/O process stores what it has; the engine, which takes no notice, ends later.
        server.until(lambda: not any(map(alive, children)), 20)
        assert len(list(server.store.iterdir())) == 1
        assert list(short.glob(f"{PREFIX}*")) == [folder]
    # The next one clears the folder away.
    done = start(short, models=["ends-with-2"])
    assert done.returncode == 2 and not list(short.glob(f"{PREFIX}*"))


def start(folder: Path, **plan: object) -> subprocess.CompletedProcess[str]:
    (folder / "store").mkdir(exist_ok=True)
    command = [*SUPERVISE, str(folder / "store"), json.dumps(plan)]
    environment = os.environ | {"XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def test_an_engine_that_cannot_start(short: Path) -> None:
    """It has said why; its exit code is the server's."""
    done = start(short, models=["ends-with-1"])
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "streamenc: no ends-with-1")
    assert not list(short.glob(f"{PREFIX}*"))
    done = start(short, models=["ends-with-7"])
    assert done.returncode == 1
    assert "the engine cannot be started: it ended with exit code 7" in done.stderr


def test_a_port_that_is_taken(short: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        done = start(short, bind=f"127.0.0.1:{there.getsockname()[1]}")
    assert "Address already in use; stop what is there" in done.stderr and done.stdout == ""
