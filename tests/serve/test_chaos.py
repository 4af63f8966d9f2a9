"""Many streams that come, break off, come again or do not: nothing is left of them, and none of
the others is another for it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("websockets", reason="needs the extra serve")
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from streamenc.io.network.websocket.livemessages import Close, Closed, Open, encode_message
from tests.serve.conftest import nano
from tests.support.rawsocket import RawSocket
from tests.support.served import Command, command

assert subprocess  # the mark `process`
RATE = 24000
RESUME_SECONDS = 3.0
KINDS = {"whole": 0.3, "breaks": 0.35, "vanishes": 0.2, "silent": 0.05, "nonsense": 0.1}
CLOSE_SECONDS = 60.0
LENGTHS = (3000, 7777, 12000)  # samples


@cache
def sound(seed: int, length: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(length) * 0.1).astype(np.float32)


@cache
def whole(seed: int, length: int) -> np.ndarray[Any, Any]:
    return nano().encode(sound(seed, length)[None]).numpy()[0]


class Chaos:
    """What became of all clients."""

    def __init__(self, url: str, seed: int) -> None:
        self.url, self.seed = url, seed
        self.counts: Counter[str] = Counter()

    async def client(self, number: int) -> None:
        """One, which does what its number says."""
        rng = np.random.default_rng((self.seed, number))
        kind = rng.choice(
            ["whole", "breaks", "vanishes", "silent", "nonsense"], p=[0.3, 0.35, 0.2, 0.05, 0.1]
        )
        self.counts[str(kind)] += 1
        seed, length = int(rng.integers(4)), int(rng.choice(LENGTHS))
        async with RawSocket(self.url) as socket:
            if kind == "silent":
                await self._connected(socket)
                await socket.leave(abort=True)
            elif kind == "nonsense":
                await self._nonsense(socket, rng)
            else:
                await self._stream(socket, rng, kind, sound(seed, length))
                if kind != "vanishes":
                    np.testing.assert_array_equal(socket.codes(), whole(seed, length))
                    self.counts["equal"] += 1

    async def _connected(self, socket: RawSocket) -> None:
        """Tries until there is a place."""
        while True:
            try:
                await socket.connect()
                return
            except InvalidStatus as error:
                assert error.response.status_code == 503
                self.counts["refused"] += 1
            except (OSError, EOFError, InvalidHandshake):
                self.counts["no server"] += 1
            await asyncio.sleep(0.2)

    async def _opened(self, socket: RawSocket) -> None:
        while True:
            await self._connected(socket)
            try:
                await socket.open(model="nano", format="f32", window=64)
                return
            except (AssertionError, ConnectionClosed) as error:  # another answer than `opened`
                assert (
                    "full" in str(error)
                    or "engine_gone" in str(error)
                    or not str(error).startswith("Error(")
                ), error
                self.counts["full"] += 1
            await socket.leave()
            await asyncio.sleep(0.2)

    async def _stream(
        self, socket: RawSocket, rng: np.random.Generator, kind: str, samples: np.ndarray[Any, Any]
    ) -> None:
        await self._opened(socket)
        breaks = int(rng.integers(1, 4)) if kind == "breaks" else 0
        while True:
            try:
                while socket.pts < len(samples):
                    size = int(rng.integers(1, 2500))
                    await socket.sound(samples[socket.pts : socket.pts + size])
                    await asyncio.sleep(float(rng.uniform(0, 0.03)))
                    if kind == "vanishes" and rng.random() < 0.3:
                        await socket.leave(abort=bool(rng.random() < 0.5))
                        return
                    if breaks and rng.random() < 0.4:
                        breaks -= 1
                        raise EOFError
                if kind == "vanishes":
                    await socket.leave(abort=True)
                    return
                await self._closed(socket)
                return
            except (EOFError, ConnectionClosed):
                await self._resumed(socket)
                if any(isinstance(message, Closed) for message in socket.messages):
                    return

    async def _closed(self, socket: RawSocket) -> None:
        await socket.say(Close())
        try:
            await socket.until(Closed, CLOSE_SECONDS)
        except TimeoutError:
            state = socket._reader, socket.token[:4], socket.seq, socket.pts, socket.count
            raise AssertionError(f"{state} {socket.notices[-6:]}, {socket.messages[-1:]}") from None
        await socket.leave()

    async def _resumed(self, socket: RawSocket) -> None:
        self.counts["resumed"] += 1
        await socket.leave(abort=True)
        while True:
            try:
                resumed = await socket.resume()
            except (OSError, EOFError, InvalidHandshake, ConnectionClosed, AssertionError) as error:
                assert "expired" not in str(error), error
                self.counts["again"] += 1
                await asyncio.sleep(0.1)
            else:
                assert resumed.exact
                self.counts[resumed.source] += 1
                socket.seq, socket.pts = resumed.next_seq, resumed.next_pts
                return

    async def _nonsense(self, socket: RawSocket, rng: np.random.Generator) -> None:
        await self._connected(socket)
        said: list[str | bytes] = [
            "{",
            rng.bytes(200),
            encode_message(Open("no such model")),
            encode_message(Open("nano", format="f32")),
        ]
        try:
            for index in rng.permutation(len(said)):
                await socket.send(said[index])
                await socket.send(rng.bytes(int(rng.integers(1, 3000))))
        except ConnectionClosed:
            pass
        await socket.leave(abort=bool(rng.random() < 0.5))


def held(server: Command) -> dict[str, int]:
    """File descriptors and memory, of all processes."""
    files = memory = 0
    for pid in server.children():
        files += len(os.listdir(f"/proc/{pid}/fd"))
        memory += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf(
            "SC_PAGE_SIZE"
        )
    return {"files": files, "megabytes": memory >> 20}


async def run(server: Command, count: int, at_once: int, seed: int, deaths: int = 0) -> Chaos:
    chaos, gate = Chaos(server.websocket, seed), asyncio.Semaphore(at_once)
    done = 0

    async def one(number: int) -> None:
        nonlocal done
        async with gate:
            await asyncio.wait_for(chaos.client(number), 120)
        done += 1
        if deaths and done % (count // (deaths + 1)) == 0 and done < count - at_once:
            os.kill(min(server.children("io")), signal.SIGKILL)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))
    return chaos


async def nothing_left(folder: Path, seconds: float) -> None:
    """In the store, of streams that nobody came back to, once their time is over."""
    ends = time.monotonic() + seconds
    while left := await asyncio.to_thread(list, (folder / "store").rglob("*")):
        assert time.monotonic() < ends, left
        await asyncio.sleep(0.5)


@pytest.mark.parametrize(
    ("count", "at_once", "deaths"),
    [(60, 20, 0), pytest.param(1000, 100, 6, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_nothing_is_left(tmp_path: Path, count: int, at_once: int, deaths: int) -> None:
    options = ["-m", "nano", "--sessions", "256", "--workers", "2"]
    options += ["--resume-seconds", str(RESUME_SECONDS), "--checkpoint-seconds", "1"]

    async def main(server: Command) -> None:
        await asyncio.to_thread(server.ready)
        await run(server, at_once, at_once, seed=1)  # what is made once, is there now
        await asyncio.sleep(RESUME_SECONDS + 2)
        before = held(server)
        chaos = await run(server, count, at_once, seed=2, deaths=deaths)
        counts = chaos.counts
        print(dict(counts))
        assert counts["equal"] == counts["whole"] + counts["breaks"] > 0
        assert counts["memory"] > 0
        # Those of a process that died are only swept away after a minute more.
        await nothing_left(tmp_path, 120 if deaths else 30)
        await asyncio.sleep(2)
        after = held(server)
        print(before, after)
        assert after["files"] <= before["files"] + 4
        assert after["megabytes"] < before["megabytes"] + 50

    with command(tmp_path, *options) as server:
        asyncio.run(main(server))
        assert "Traceback" not in server.said(), server.said()
