"""A stream over an MQTT broker that is ended and started again: what was written, and what came."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from streamenc.graph.frames import Frame
from streamenc.io.network.mqtt.mqttsink import MqttSink
from streamenc.io.network.mqtt.mqttsource import MqttSource
from tests.campaign.targets.wirebytes import CODES
from tests.support.broker import Broker

# More of them would measure this machine: all are in one process.
AT_ONCE = 2


@dataclass(frozen=True)
class Way:
    """How a broker is ended, and what goes over it.

    Attributes:
        persistent: it writes its sessions down when it is stopped.
        signal: "TERM" or "KILL".
        away_s: until it is started again.
        hertz: frames a second.
        qos: of both ends.
        readers: sources that read the stream.
    """

    persistent: bool
    signal: str
    away_s: float
    hertz: int
    qos: int = 1
    readers: int = 1


WAYS = (
    *(
        Way(persistent, signal, away_s, hertz)
        for persistent, signal, (away_s, hertz) in product(
            (True, False), ("TERM", "KILL"), ((0.5, 50), (4.0, 200))
        )
    ),
    Way(False, "KILL", 0.5, 50, readers=3),
    Way(False, "KILL", 0.5, 50, qos=0),
)


def run(restarts: int, seed: int, ways: Sequence[Way] = WAYS) -> list[dict[str, Any]]:
    """A row for each of `ways`, with `restarts` of a broker of its own; some of them at once."""
    rows: list[dict[str, Any]] = [{} for _ in ways]

    async def main() -> None:
        places = anyio.Semaphore(AT_ONCE)

        async def one(number: int, way: Way) -> None:
            async with places:
                rows[number] = await restarted(way, restarts, random.Random(f"{seed} {number}"))

        async with anyio.create_task_group() as tasks:
            for number, way in enumerate(ways):
                tasks.start_soon(one, number, way)

    anyio.run(main)
    return rows


async def restarted(way: Way, restarts: int, rng: random.Random) -> dict[str, Any]:
    """One row: of several readers, the sums of what each lost or got wrong."""
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder), persistent=way.persistent)
        await anyio.to_thread.run_sync(broker.start)
        try:
            return await _measured(way, restarts, rng, broker)
        finally:
            broker.kill()


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits, but no longer than that: the rows show what did not come about."""
    for _ in range(round(20 * seconds)):
        if condition():
            return
        await anyio.sleep(0.05)


async def _measured(way: Way, restarts: int, rng: random.Random, broker: Broker) -> dict[str, Any]:
    sink = MqttSink(broker.url(), qos=way.qos)
    sources = [MqttSource(broker.url(), qos=way.qos) for _ in range(way.readers)]
    got: list[list[int]] = [[] for _ in sources]
    stop = anyio.Event()
    written = 0

    async def write() -> None:
        nonlocal written
        began = anyio.current_time()
        while not stop.is_set():
            data = np.full((8, 1), written % 2048, np.uint16)
            await sink.write(Frame(data, written * 1920, 1920, written))
            written += 1
            await anyio.sleep(max(0.0, began + written / way.hertz - anyio.current_time()))

    async def collect(source: MqttSource, into: list[int]) -> None:
        async for frame in source.frames():
            into.append(frame.seq)

    try:
        await sink.open(CODES)
        for source in sources:
            await source.open()
        async with anyio.create_task_group() as readers:
            for source, into in zip(sources, got, strict=True):
                readers.start_soon(collect, source, into)
            async with anyio.create_task_group() as writer:
                writer.start_soon(write)
                for _ in range(restarts):
                    # Often before both ends are back and through with what waited.
                    await anyio.sleep(way.away_s * rng.uniform(1.0, 2.0) + rng.uniform(0.0, 0.5))
                    end = broker.kill if way.signal == "KILL" else broker.stop
                    await anyio.to_thread.run_sync(end)
                    await anyio.sleep(way.away_s)
                    await anyio.to_thread.run_sync(broker.start)
                await anyio.sleep(4.0)
                stop.set()
            await until(lambda: not sink._queue, 60)
            await sink.aclose()
            await until(lambda: all(source._reader.ended for source in sources), 10)
            for source in sources:
                source.stop()
    finally:
        for node in (sink, *sources):
            await node.aclose()
    return {
        "broker": "persistent" if way.persistent else "forgetful",
        "signal": way.signal,
        "away_s": way.away_s,
        "hertz": way.hertz,
        "qos": way.qos,
        "readers": way.readers,
        "restarts": restarts,
        "written": written,
        "received": min(len(set(seqs)) for seqs in got),
        "lost": sum(written - len(set(seqs)) for seqs in got),
        "counted": sum(source.lost for source in sources),
        "repeated": sum(len(seqs) - len(set(seqs)) for seqs in got),
        "out_of_order": sum(b < a for seqs in got for a, b in pairwise(seqs)),
        "dropped": sink.dropped,
        "unheard": sink.unheard,
    }
