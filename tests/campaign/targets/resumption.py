"""Forged snapshots, from which a server or an engine in another process is to go on."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.errors import SnapshotError
from streamenc.io.network import wire
from streamenc.serve.streams.streamrecord import StreamRecord, read_record
from tests.campaign.target import mutated
from tests.campaign.targets.snapshots import COUNTS, forged, recipe
from tests.support.hostserver import HOP, AppSocket, HostServer, host_server

OPEN = {"type": "open", "model": "nano", "format": "f32", "window": 0}
SOUND = np.zeros((1, HOP), np.float32)
STEPS = 4
ODD = (
    *(count for count in COUNTS if count != 2**64),
    -(2**53),
    "",
    "nano",
    "x" * 70_000,
    b"",
    bytes(4000),
    [],
    [[]] * 99,
    {},
)
FIELDS = StreamRecord.__struct_fields__


class Resumption:
    """A stream that begins with a forged snapshot, some hops of it, and its end.

    An input is JSON: `door`, "server" or "engine"; `changes`, of the engine's snapshot, as in
    `snapshots`; `fields`, of the record that a server puts around it; `seed`, by which its bytes
    are changed, or null.
    """

    seconds, peak_bytes = 2.0, 100 << 20

    def __init__(self, server: HostServer) -> None:
        self._server = server
        # What is imported and made once counts for no case.
        blob, _ = _honest()
        for visit, whole in (
            (self._at_the_engine, blob),
            (self._at_the_server, _record(blob, {})),
        ):
            why = server.visited(lambda visit=visit, whole=whole: visit(whole))
            assert not why, why

    def case(self, rng: Random) -> bytes:
        door = rng.choice(("server", "server", "engine"))
        fields = {}
        if door == "server" and rng.random() < 0.4:
            fields[rng.choice(FIELDS)] = rng.randrange(len(ODD))
        changes = [] if fields and rng.random() < 0.5 else recipe(rng, self._server.codec.spec)
        seed = rng.randrange(10**6) if rng.random() < 0.1 else None
        return json.dumps(
            {"door": door, "changes": changes, "fields": fields, "seed": seed}
        ).encode()

    def take(self, data: bytes) -> None:
        asked = json.loads(data)
        blob, grows = _honest()
        made = forged(blob, asked["changes"], grows)
        if asked["door"] == "server":
            made = _record(made, {name: ODD[at] for name, at in asked["fields"].items()})
            visit = self._at_the_server
        else:
            visit = self._at_the_engine
        if asked["seed"] is not None:
            made = mutated(made, Random(asked["seed"]))
        why = self._server.visited(lambda: visit(made))
        if why:
            raise SnapshotError(why)

    async def _at_the_server(self, blob: bytes) -> str:
        socket = AppSocket(self._server.app, "/v1/stream")
        socket.send(json.dumps({**OPEN, "snapshot": True}))
        socket.send(wire.encode_snapshot(wire.StreamSnapshot(0, blob)))
        await socket.until(lambda: socket.texts or socket.closed is not None)
        told = json.loads(socket.texts[0])
        if told["type"] == "opened":
            for more in range(STEPS, STEPS + 3):  # behind the message that asked for the snapshot
                socket.send(wire.encode_samples(SOUND, 1 + more, more * HOP, 0))
            socket.send('{"type": "close"}')
            await socket.until(lambda: socket.closed is not None)
        await socket.leave()
        errors = [told for text in socket.texts if (told := json.loads(text))["type"] == "error"]
        assert all(error["code"] != "internal" for error in errors), errors
        return str(errors)[:500] if errors else ""

    async def _at_the_engine(self, blob: bytes) -> str:
        async with await RemoteEngine.connect(self._server.door.address) as engine:
            session = engine.open("nano")
            try:
                await session.restore(blob)
            except SnapshotError as refusal:
                return str(refusal)
            for _ in range(3):
                await session.step(SOUND)
            await session.flush()
        return ""


@cache
def _honest() -> tuple[bytes, list[int]]:
    """A snapshot of an engine's session; by how much each whole number of it grows in a step."""
    stream = host_server().codec.stream()
    stream.push(np.zeros((1, STEPS * HOP), np.float32))
    return stream.snapshot(), []


@cache
def _kept() -> bytes:
    """A record of a server."""
    server = host_server()

    async def taken() -> bytes:
        socket = AppSocket(server.app, "/v1/stream")
        socket.send(json.dumps(OPEN))
        for seq in range(STEPS):
            socket.send(wire.encode_samples(SOUND, seq, seq * HOP, 0))
        socket.send('{"type": "snapshot"}')
        snapshots: list[bytes] = []

        def came() -> bool:
            packets = map(wire.decode, socket.packets)
            snapshots.extend(p.blob for p in packets if isinstance(p, wire.StreamSnapshot))
            return bool(snapshots)

        await socket.until(came)
        await socket.leave()
        return snapshots[0]

    return server.call(taken())


def _record(blob: bytes, fields: dict[str, Any]) -> bytes:
    """A server's record around an engine's snapshot, with other fields and a right digest."""
    record = read_record(_kept())
    stages = [msgspec.structs.replace(stage, snapshot=blob) for stage in record.stages]
    record = msgspec.structs.replace(record, stages=stages)
    return msgspec.structs.replace(record, **fields).to_bytes()


def target(folder: Path) -> Resumption:
    return Resumption(host_server())
