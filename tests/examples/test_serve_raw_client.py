"""examples/serve_raw_client.py: through a network that fails, its codes are those of one run."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.serve.conftest import Served, engine_address, nano, serve, served
from tests.support.media import write_wav

__all__ = ["engine_address", "serve", "served"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_raw_client.py"
RATE = 48_000


class Cutter:
    """A way to the server that breaks after so many bytes to the client, a few times.

    Attributes:
        connections: How many there were.
    """

    def __init__(self, port: int, after: list[int]) -> None:
        self._port, self._after = port, after
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = self._after[self.connections] if self.connections < len(self._after) else 2**40
        self.connections += 1
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._port)
        up = asyncio.create_task(self._copy(reader, to_server, 2**40))
        await self._copy(from_server, writer, left)
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)
        for end in (writer, to_server):
            end.transport.abort()

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int) -> None:
        try:
            while left > 0 and (data := await reader.read(min(left, 4096))):
                writer.write(data)
                await writer.drain()
                left -= len(data)
        except ConnectionError:
            return


async def codes_of(port: int, after: list[int], wav: Path) -> tuple[np.ndarray, int]:
    """What the client prints, and how many connections it took."""
    cutter = Cutter(port, after)
    async with await asyncio.start_server(cutter, "127.0.0.1", 0) as proxy:
        at = proxy.sockets[0].getsockname()[1]
        client = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLE), f"ws://127.0.0.1:{at}", "nano", str(wav),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, error = await client.communicate()
    assert client.returncode == 0, error.decode()
    rows = [line.split()[2:] for line in out.decode().splitlines()]
    return np.array(rows, int).T, cutter.connections


@pytest.mark.parametrize("after", [[], [3000, 2500, 4000]])
def test_equal_to_one_run(served: Served, after: list[int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = np.clip(rng.normal(0, 0.1, (1, 2 * RATE)), -1, 1)
    wav = write_wav(tmp_path / "sound.wav", sound, RATE)
    port = int(served.url.rpartition(":")[2])
    codes, connections = asyncio.run(codes_of(port, after, wav))
    assert connections == 1 + len(after)
    assert np.array_equal(codes, nano().encode_file(wav).data)


def test_it_does_without_streamenc() -> None:
    assert "import streamenc" not in EXAMPLE.read_text()
    assert "from streamenc" not in EXAMPLE.read_text()
