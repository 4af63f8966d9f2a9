"""streamenc.client and rooms at the command `streamenc serve`, whose processes are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra serve")

import streamenc.client
from streamenc.io.network.websocket.livemessages import Resumed
from streamenc.io.reading import read_file
from tests.serve.conftest import nano
from tests.support.served import Command, command

pytestmark = pytest.mark.slow  # tests/cli/test_serve.py kills less

ROOT = Path(__file__).parents[2]
RATE = 16_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    folder = tmp_path_factory.mktemp("s")
    with command(folder, "-m", "nano", "--workers", "2", "--checkpoint-seconds", "0.3") as server:
        server.ready()
        yield server


def noise(seconds: float) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    return (rng.standard_normal(int(RATE * seconds)) * 0.1).astype(np.float32)


async def disturbed(
    urls: Sequence[str], samples: np.ndarray[Any, Any], disturb: Callable[[int], None]
) -> tuple[np.ndarray[Any, Any], streamenc.client.ClientStatistics, list[Resumed]]:
    """The codes of a stream; `disturb` is called with the number of each piece that is sent."""
    resumed: list[Resumed] = []

    def on_event(event: object) -> None:
        if isinstance(event, Resumed):
            resumed.append(event)

    first, *others = urls
    async with streamenc.client.connect(
        first, addresses=others, model="nano", on_event=on_event
    ) as stream:

        async def send() -> None:
            for number, at in enumerate(range(0, len(samples), 1920)):
                await stream.send(samples[at : at + 1920])
                disturb(number)
                await asyncio.sleep(0.02)
            await stream.close()

        sending = asyncio.create_task(send())
        pieces = [piece async for piece in stream]
        await sending
        assert [piece.seq for piece in pieces] == list(range(len(pieces)))
        assert not any(piece.discontinuity for piece in pieces)
        codes = np.concatenate([piece.data for piece in pieces], axis=1)
        return codes, stream.statistics(), resumed


def kill(pids: set[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["io", "engine"])
def test_processes_that_are_killed_in_mid_stream(server: Command, kind: str) -> None:
    samples = noise(6.0)

    def disturb(number: int) -> None:
        if number == 30:
            kill(server.children(kind))

    async def main() -> None:
        async with asyncio.timeout(100):
            codes, statistics, resumed = await disturbed([server.websocket], samples, disturb)
        assert np.array_equal(codes, nano().encode(samples[None]).numpy()[0])
        assert statistics.missing == 0
        assert statistics.resumed >= 1
        assert all(event.exact for event in resumed)
        assert "store" in {event.source for event in resumed}

    asyncio.run(main())


def program(*words: str | Path) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)


def test_a_room_between_commands(server: Command, tmp_path: Path) -> None:
    samples = noise(2.0)
    room = f"{server.websocket}/v1/room/talk"
    heard = [tmp_path / f"{number}.arrows" for number in range(2)]
    listeners = [program("-m", "streamenc", "listen", room, path) for path in heard]
    speaker = program("-m", "streamenc", "encode", "pcm:-?rate=16000&format=f32le", room)
    try:
        assert speaker.stdin is not None
        speaker.stdin.write(samples[:RATE].tobytes())
        speaker.stdin.flush()
        server.until(lambda: all(path.exists() for path in heard))
        _, said = speaker.communicate(samples[RATE:].tobytes(), timeout=60)
        assert speaker.returncode == 0, said.decode()
        for each in listeners:
            _, said = each.communicate(timeout=60)
            assert each.returncode == 0, said.decode()
    finally:
        for each in (speaker, *listeners):
            each.kill()
            each.communicate()
    wanted = nano().encode(samples[None]).numpy()[0]
    for path in heard:
        info, frames = read_file(str(path))
        assert info.kind == "codes"
        codes = np.concatenate([frame.data for frame in frames], axis=1)
        assert codes.shape[1] >= wanted.shape[1] // 2 - 2  # of the second half, at least
        assert np.array_equal(codes, wanted[:, -codes.shape[1] :])


def test_a_server_that_is_killed_is_followed_by_another(tmp_path_factory) -> None:
    folder, samples = tmp_path_factory.mktemp("s"), noise(6.0)
    options = ("-m", "nano", "--checkpoint-seconds", "0.3")
    with command(folder, *options) as first, command(folder, *options) as second:
        first.ready()
        second.ready()
        urls = (first.websocket, second.websocket)

        def disturb(number: int) -> None:
            if number == 30:
                children = first.children()
                first.process.kill()
                kill(children)

        async def main() -> None:
            async with asyncio.timeout(100):
                codes, statistics, resumed = await disturbed(urls, samples, disturb)
            assert np.array_equal(codes, nano().encode(samples[None]).numpy()[0])
            assert [event.source for event in resumed] == ["store"]
            assert statistics.missing == 0

        asyncio.run(main())
