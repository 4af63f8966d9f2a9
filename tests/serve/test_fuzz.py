"""Whatever clients send, they get answers of docs/server, and the others their codes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamenc.io.network import wire
from streamenc.io.network.websocket import livemessages
from streamenc.serve.limits import Limits
from streamenc.serve.streams.streamrecord import DIGEST_BYTES
from streamenc.serve.streamsocket import CLOSE_CODES, POLICY_VIOLATION
from tests.serve.conftest import Served
from tests.serve.hostilewriter import ODD, WEBM, Writer
from tests.serve.inputs.compressed import tones
from tests.serve.test_streamsocket import offline, sound
from tests.support.profile import examples
from tests.support.rawsocket import RawSocket

ALLOWED = {POLICY_VIOLATION, 1000, *CLOSE_CODES.values()} - {1011}
CODES = {
    "bad_message", "bad_packet", "bad_sequence", "unknown_model", "bad_open", "bad_snapshot",
    "full", "ending", "expired", "taken_over", "idle", "too_long", "too_big", "too_slow",
    "offended",
}  # fmt: skip


async def told(socket: ClientConnection, writer: Writer, kinds: Counter[str]) -> None:
    """Counts what comes, to the end of the connection."""
    while True:
        try:
            message = await socket.recv()
        except ConnectionClosed:
            return
        if isinstance(message, bytes):
            wire.decode(message)
            kinds["packet"] += 1
            continue
        read = json.loads(message)
        kinds[read["type"]] += 1
        if read["type"] == "error":
            assert read["code"] in CODES, read
            kinds[read["code"]] += 1
            writer.learn(read["message"])


async def hostile(url: str, writer: Writer, kinds: Counter[str]) -> None:
    try:
        socket = await connect(
            f"{url}/v1/stream", subprotocols=[livemessages.SUBPROTOCOL], max_size=2**26
        )
    except InvalidStatus as refused:
        assert refused.response.status_code == 503
        kinds["503"] += 1
        return
    async with socket:
        listening = asyncio.create_task(told(socket, writer, kinds))
        try:
            for message in writer.script():
                await socket.send(message)
                if writer.chance(0.3):
                    await asyncio.sleep(0.003)
        except ConnectionClosed:
            kinds["closed early"] += 1
        await asyncio.wait([listening], timeout=0.1)
        await socket.close()
        await listening
    code = socket.close_code
    assert code in ALLOWED or (code is not None and 4000 <= code < 5000), code


async def neighbour(url: str, samples: np.ndarray[Any, Any], done: asyncio.Event) -> RawSocket:
    """Sends a little as long as the others do."""
    async with RawSocket(url) as socket:
        await socket.open(model="nano", format="f32", window=1024)
        for at in range(0, len(samples), 480):
            await socket.sound(samples[at : at + 480])
            if not done.is_set():
                await asyncio.sleep(0.02)
        await socket.close()
        return socket


def test_hostile_clients(serve: Callable[..., Served], caplog: pytest.LogCaptureFixture) -> None:
    limits = Limits(resume_seconds=0.1, max_message_bytes=2**16, max_queued_bytes=2**18)
    served = serve(limits=limits)
    samples, kinds = sound(3), Counter[str]()

    async def go() -> RawSocket:
        done = asyncio.Event()
        other = asyncio.create_task(neighbour(served.url, samples, done))
        for first in range(0, examples(1200, fast=90), 3):
            writers = [Writer(seed) for seed in range(first, first + 3)]
            await asyncio.gather(*(hostile(served.url, each, kinds) for each in writers))
        done.set()
        return await other

    with caplog.at_level(logging.ERROR):
        socket = asyncio.run(go())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert np.array_equal(socket.codes(), offline(samples))
    # They got far enough to matter, and nearly everything that can be answered was.
    assert kinds["opened"] > 40 and kinds["packet"] > 40
    assert kinds.keys() >= {"bad_packet", "bad_message", "bad_sequence", "flushed", "mark"}


def flipped(blob: bytes, rng: np.random.Generator) -> bytes:
    """Some other bytes, mostly among the first ones, or fewer."""
    bad = bytearray(blob or b"\0")
    for at in rng.integers(0, min(len(bad), 60) if rng.random() < 0.7 else len(bad), 2):
        bad[at] = rng.integers(256)
    return bytes(bad[: rng.integers(0, len(bad))]) if rng.random() < 0.2 else bytes(bad)


def spoiled(blob: bytes, rng: np.random.Generator) -> bytes:
    """A snapshot that was damaged, or in which somebody put another value."""
    head = 1 + DIGEST_BYTES
    if rng.random() < 0.1:
        return flipped(blob, rng)
    fields = msgspec.msgpack.decode(blob[head:])
    part: Any = fields
    while True:  # somewhere within
        keys = [*part] if isinstance(part, dict) else [*range(len(part))]
        key = keys[int(rng.integers(len(keys)))]
        value = part[key]
        if isinstance(value, dict | list) and value and rng.random() < 0.8:
            part = value
            continue
        if isinstance(value, bytes) and rng.random() < 0.8:
            part[key] = flipped(value, rng)
        else:
            part[key] = ODD[int(rng.integers(len(ODD)))]
        break
    body = msgspec.msgpack.encode(fields)
    return blob[:1] + hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest() + body


@pytest.mark.parametrize("format", ["s16", "media"])
def test_snapshots_that_were_spoiled(
    served: Served, caplog: pytest.LogCaptureFixture, format: str
) -> None:
    rng, kinds = np.random.default_rng(1), Counter[str]()
    asked: dict[str, Any] = {"model": "nano", "format": format, "rate": 48000.0}

    async def taken() -> bytes:
        async with RawSocket(served.url) as socket:
            await socket.open(**asked)
            if format == "media":
                await socket.send(wire.encode_bytes(WEBM[:9000], 0))
                socket.seq = 1
            else:
                await socket.sound((tones(4000) * 32767).astype(np.int16))
            await socket.say(livemessages.TakeSnapshot())
            await socket.until(livemessages.SnapshotTaken)
            await socket.close()
            return socket.snapshot

    async def tried(blob: bytes) -> None:
        url = f"{served.url}/v1/stream"
        async with connect(url, subprotocols=[livemessages.SUBPROTOCOL], max_size=2**26) as socket:
            await socket.send(json.dumps({"type": "open", "snapshot": True, **asked}))
            await socket.send(wire.encode_snapshot(wire.StreamSnapshot(0, blob)))
            answer = json.loads(await socket.recv())
            kinds[answer["type"]] += 1
            if answer["type"] == "opened":
                await socket.send(json.dumps({"type": "close"}))
            else:
                assert answer["code"] in CODES, answer
            while True:
                try:
                    await socket.recv()
                except ConnectionClosed:
                    break
        assert socket.close_code in ALLOWED

    async def go() -> None:
        blob = await taken()
        await tried(blob)
        assert kinds["opened"] == 1
        for _ in range(examples(1000, fast=60)):
            await tried(spoiled(blob, rng))

    with caplog.at_level(logging.ERROR):
        asyncio.run(go())
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert kinds["error"] > 10
