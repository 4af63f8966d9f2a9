"""Live clients, as `bench serve` starts them: of a server, or of its engine alone.

    python -m bench.cpu.socketdoor

It reads what to do as JSON on standard input, says "ready" once its sessions are open, begins at
another line, and prints what it found as JSON. It knows nothing of torch.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import msgspec
import numpy as np
from websockets.asyncio.client import ClientConnection, connect

from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.io.network.websocket.livemessages import (
    SUBPROTOCOL,
    Error,
    Open,
    Opened,
    encode_message,
    read_from_server,
)
from streamenc.io.network.wire import Credit, Data, decode, encode_credit, encode_samples

# Packets of each session before those that count.
WARMUP_SECONDS = 1.0
WINDOW, CREDIT_EACH = 64, 16
# For the last answers.
PATIENCE_SECONDS = 10.0
# Of features.
TOLERANCE = 1e-4


class Task(msgspec.Struct):
    """What a process of clients does.

    Attributes:
        address: ws://... of a server, or ipc://... of an engine.
        name: Of the model there.
        sound: A .npy of int16 samples, of which each packet has `samples`, one each `period`.
        expected: A .npy with what comes out, (channels, items).
        lead, hop, lead_out, hop_out: How the model steps.
        first, of: The number of the first session here, of all that there are: their phases.
    """

    address: str
    name: str
    sound: str
    expected: str
    samples: int
    period: float
    lead: int
    hop: int
    lead_out: int
    hop_out: int
    sessions: int
    first: int
    of: int
    seconds: float


class Checked:
    """What comes out of one session: when, and whether it is what must come.

    Attributes:
        wrong: Items that were others.
        through: Set once all has come.
    """

    def __init__(self, task: Task, expected: Any, due: list[float], times_ms: list[float]) -> None:
        self._task, self._expected = task, expected
        self._due = deque(due)  # of packets that complete a step
        self._times_ms = times_ms
        self._ends = deque(complete(task, len(due)))
        self.items = self.wrong = 0
        self.through = asyncio.Event()

    def came(self, data: Any) -> None:
        """Items (channels, items), which may complete the answers of some packets."""
        now, count = time.perf_counter(), data.shape[1]
        expected = self._expected[: data.shape[0], self.items : self.items + count]
        if expected.dtype.kind == "f":  # a batch of another size sums in another order
            differs = np.abs(data - expected) > TOLERANCE
        else:
            differs = data != expected
        self.wrong += int(differs.any(axis=0).sum())
        self.items += count
        while self._ends and self._ends[0] <= self.items:
            self._ends.popleft()
            self._times_ms.append(1e3 * (now - self._due.popleft()))
        if not self._ends:
            self.through.set()

    @property
    def missing(self) -> int:
        """Packets that were not answered in full."""
        return len(self._ends)


def complete(task: Task, packets: int) -> list[int]:
    """Items that are out once each packet is through."""
    ends = []
    for number in range(1, packets + 1):
        samples = number * task.samples
        steps = (samples - task.lead) // task.hop
        ends.append(0 if samples < task.lead else task.lead_out + steps * task.hop_out)
    return ends


async def of_server(task: Task, sound: Any, chunks: Any) -> tuple[Any, Any]:
    """A session over a WebSocket: what sends a packet, and what receives until it is told."""
    socket = await connect(
        f"{task.address}/v1/stream", subprotocols=[SUBPROTOCOL], compression=None, max_size=2**24
    )
    opening = Open(task.name, format="s16", window=WINDOW)
    await socket.send(encode_message(opening))
    opened = read_from_server(await socket.recv())
    assert isinstance(opened, Opened), opened
    packets = [
        encode_samples(sound[None, at : at + task.samples], number, at)
        for number, at in enumerate(range(0, len(sound) - task.samples + 1, task.samples))
    ]

    async def send(number: int) -> None:
        await socket.send(packets[number])

    async def receive(checked: Checked) -> None:
        await _received(socket, checked)

    return (send, socket), receive


async def _received(socket: ClientConnection, checked: Checked) -> None:
    came = 0
    async for message in socket:
        if isinstance(message, str):
            told = read_from_server(message)
            assert not isinstance(told, Error), told
            continue
        packet = decode(message)
        if not isinstance(packet, Data):
            continue
        came += 1
        if came % CREDIT_EACH == 0:
            await socket.send(encode_credit(Credit(0, came, WINDOW)))
        checked.came(packet.data)


async def live(task: Task) -> dict[str, Any]:
    sound, expected = np.load(task.sound), np.load(task.expected)
    warmup = round(WARMUP_SECONDS / task.period)
    packets = min(warmup + round(task.seconds / task.period), len(sound) // task.samples)
    times_ms: list[float] = []
    sessions: list[tuple[Callable[[int], Awaitable[None]], Any, Any]] = []
    engine = None
    if task.address.startswith("ipc:"):
        engine = await RemoteEngine.connect(task.address)
        floats = (sound.astype(np.float32) / 32768)[None, None]
        for _ in range(task.sessions):
            sessions.append((None, await engine.open(task.name).admitted(), floats))
    else:
        for _ in range(task.sessions):
            (send, socket), receive = await of_server(task, sound, None)
            sessions.append((send, socket, receive))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    gc.freeze()
    cpu_before, start = time.process_time(), time.perf_counter() + 0.05

    async def one(number: int, send: Any, place: Any, rest: Any) -> tuple[int, int, int]:
        begin = start + (task.first + number) / task.of * task.period
        due = [begin + packet * task.period for packet in range(packets)]
        mine_ms: list[float] = []
        checked = Checked(task, expected, due, mine_ms)
        receiving = None if engine else asyncio.create_task(rest(checked))
        calls = []

        async def stepped(packet: int) -> None:
            at = packet * task.samples
            checked.came((await place.step(rest[:, :, at : at + task.samples]))[0])

        for packet in range(packets):
            await asyncio.sleep(due[packet] - time.perf_counter())
            if engine:
                calls.append(asyncio.create_task(stepped(packet)))
            else:
                await send(packet)
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                await checked.through.wait()
        if receiving is not None:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)
        await asyncio.gather(*calls)
        times_ms.extend(mine_ms[warmup:])
        return checked.wrong, checked.missing, checked.items

    found = await asyncio.gather(*(one(i, *session) for i, session in enumerate(sessions)))
    cpu_seconds = time.process_time() - cpu_before
    wall_seconds = time.perf_counter() - start
    for _, place, _ in sessions:
        place.close() if engine else await place.close()
    if engine:
        engine.close()
    assert "torch" not in sys.modules
    wrong, missing, items = map(sum, zip(*found, strict=True))
    return {
        "times_ms": times_ms,
        "wrong": wrong,
        "missing": missing,
        "items": items,
        "cpu": cpu_seconds / wall_seconds,
    }


if __name__ == "__main__":
    told = msgspec.json.decode(sys.stdin.readline(), type=Task)
    print(json.dumps(asyncio.run(live(told))))
