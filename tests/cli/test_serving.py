"""The command engine: as a process, from its start to its end by a signal."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.errors import TransportError
from tests.support.program import Done

Call = Callable[..., Done]


@contextmanager
def serving(address: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, once it has said that it serves; whatever happens, it ends with the block."""
    command = [sys.executable, "-m", "streamenc", "engine", address, "-m", "nano"]
    command += ["--device", "cpu", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            assert said == f"serving nano on cpu at {address}, 3 sessions at most\n"
            yield process
        finally:
            process.kill()


def test_an_engine_leaves_at_sigterm(tmp_path: Path) -> None:
    """It goes on with what is open, gives snapshots, and ends with the last session."""
    address = f"ipc://{tmp_path}/engine"

    async def main(process: subprocess.Popen[str]) -> None:
        async with asyncio.timeout(60), await RemoteEngine.connect(address) as engine:
            session = engine.open("nano", codebooks=4)
            codes = await session.step(np.zeros(640, np.float32))
            assert codes.shape == (1, 4, 1)
            process.send_signal(signal.SIGTERM)
            for _ in range(1000):
                if engine.leaving:
                    break
                await asyncio.sleep(0.01)
            with pytest.raises(TransportError, match="opens no more sessions"):
                engine.open("nano")
            assert (await session.step(np.zeros(320, np.float32))).shape == (1, 4, 1)
            assert await session.snapshot()
            session.close()
            with pytest.raises(TransportError, match="is gone"):
                while True:
                    await engine.fresh_statistics()
                    await asyncio.sleep(0.01)

    with serving(address, "--sessions", "3", "--drain", "30") as process:
        asyncio.run(main(process))
        assert process.wait(10) == 0
        said = process.stderr.read() if process.stderr is not None else ""
    assert "no new sessions; ends when none is open, in 30 s at the latest" in said
    assert "clients   1; 0 broke off, 0 were dismissed" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("http://localhost:80", "-m", "nano"), "wanted ipc:///path or tcp://127.0.0.1:port"),
        (("tcp://0.0.0.0:99", "-m", "nano"), "listens on this machine only"),
        (("ipc:///tmp/e", "-m", "nano", "-m", "nano"), "nano is served already"),
        (("ipc:///tmp/e", "-m", "nano", "-m", "mel", "--set", "a=1"), "--set is of one model"),
        (("ipc:///nowhere/at/all", "-m", "nano"), "its folder must be there"),
    ],
)
def test_what_is_refused(call: Call, arguments: tuple[str, ...], message: str) -> None:
    done = call("engine", *arguments)
    assert done.code in (1, 2) and message in done.error
