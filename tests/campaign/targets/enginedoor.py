"""What clients of an engine in another process send to its door."""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import zmq

from streamenc.engine.remote import protocol
from streamenc.engine.remote.protocol import (
    NOBODY,
    Bye,
    Call,
    Choose,
    Close,
    Hello,
    Open,
    Outgoing,
    Refused,
    Turn,
    Welcome,
    head,
    read_engine,
)
from streamenc.errors import WireError
from tests.campaign.target import mutated
from tests.support.hostserver import HOP, SECONDS, HostServer, host_server

NUMBERS = (0, 1, 2, -1, 7, 2**31, 2**53, 2**63 - 1, -(2**63))
ODD = (None, True, *NUMBERS, 2**64 - 1, 1e308, float("nan"), "", "nano", b"", [], {}, [[0]] * 9)
CALLS = ("flush", "snapshot", "restore", "texts", "statistics", "explode")
DTYPES = ("<f4", "<f4", "<f4", "<f8", "<f2", "|u1", "<i8")
SHAPES = ((1, HOP), (1, HOP), (1, HOP), (1, 1), (1, 0), (2, HOP), (0,), (), (1, 1, 1, HOP))


class EngineDoor:
    """A client that says hello, then this message, and then what tells whether it was taken.

    An input is the frames of a message, as a MessagePack list of bytes; any other bytes are one
    frame.
    """

    seconds, peak_bytes = 2.0, 150 << 20

    def __init__(self, server: HostServer) -> None:
        self._server = server
        self._context = zmq.Context.instance()

    def case(self, rng: Random) -> bytes:
        frames = _turn(rng)
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            at = rng.randrange(len(frames))
            match rng.randrange(5):
                case 0:
                    del frames[at]
                case 1:
                    frames.insert(at, rng.choice(frames))
                case 2 if frames and frames[0].startswith(protocol.MAGIC):
                    frames[0] = _mangled(frames[0], rng)
                case _:
                    frames[at] = mutated(frames[at], rng)
            if not frames:
                break
        return msgspec.msgpack.encode(frames)

    def take(self, data: bytes) -> None:
        try:
            frames = msgspec.msgpack.decode(data, type=list[bytes]) or [b""]
        except (msgspec.DecodeError, RecursionError):
            frames = [data]
        told = self._server.visited(lambda: self._visit(frames))
        if told:
            raise WireError(told)

    async def _visit(self, frames: list[bytes]) -> str:
        """Why the message was refused, or ""."""
        with self._context.socket(zmq.DEALER) as rogue:
            rogue.linger = 0
            rogue.connect(self._server.door.address)
            for message in ([head(Hello(1))], frames, [head(Hello(1))]):
                rogue.send_multipart(message)
            ends, why = 0, ""
            # The first hello is welcome; the second one too, where the message between was not.
            for _ in range(100):
                assert rogue.poll(1000 * SECONDS), "no answer came"
                said = read_engine([memoryview(part) for part in rogue.recv_multipart()])
                if isinstance(said, Refused):
                    why = "" if "does not know you" in said.why and not ends else said.why
                    ends += 1
                if isinstance(said, Refused | Welcome) and (not why or isinstance(said, Welcome)):
                    if isinstance(said, Refused) or why:
                        break
            rogue.send_multipart([head(Bye())])
        return why


def _turn(rng: Random) -> list[bytes]:
    """What a client may say, mostly in order."""
    out = Outgoing(of_client=True)
    tags = itertools.count(1)
    session = 1
    if rng.random() < 0.9:
        out.entry(session, Open(next(tags), session, "nano", False, rng.choice((1, 1, 1, 3)), None))
    for _ in range(rng.randrange(6)):
        whose = rng.choice(NUMBERS) if rng.random() < 0.05 else session
        match rng.randrange(8):
            case 0:
                what = rng.choice(CALLS)
                blob = _snapshot(rng) if what == "restore" else None
                asked = rng.choice((whose, NOBODY)) if what == "statistics" else whose
                out.entry(asked, Call(next(tags), asked, what), blob)
            case 1:
                out.entry(whose, Choose(whose, rng.choice((None, 1, 4, 0, -1, 99))))
            case 2 if rng.random() < 0.3:
                out.entry(whose, Close(whose))
            case 3:
                more = Open(next(tags), rng.choice((2, 3, 2**60)), *_named(rng))
                out.entry(more.session, more)
            case _:
                array = np.zeros(rng.choice(SHAPES), rng.choice(DTYPES))
                if rng.random() < 0.2 and array.dtype.kind == "f":
                    array[...] = rng.choice((float("nan"), 6e4, -1e-40))
                out.row(next(tags), whose, [array] * rng.choice((1, 1, 1, 1, 2)))
    received = rng.choice((1, -1, 2**62)) if rng.random() < 0.05 else 0
    return [bytes(frame) for frame in out.frames(Turn(received, out.table))]


def _named(rng: Random) -> tuple[Any, ...]:
    name = rng.choice(("nano", "nano", "", "x" * 70_000, "../nano"))
    return name, rng.random() < 0.2, rng.choice((1, 2, 0, -1, 2**40)), rng.choice((None, 1, 0, 99))


@cache
def _whole() -> bytes:
    stream = host_server().codec.stream()
    stream.push(np.zeros((1, 3 * HOP), np.float32))
    return stream.snapshot()


def _snapshot(rng: Random) -> bytes:
    return mutated(_whole(), rng) if rng.random() < 0.7 else _whole()


def _mangled(frame: bytes, rng: Random) -> bytes:
    """A table with another value somewhere."""
    start = len(protocol.MAGIC) + 1
    try:
        fields = msgspec.msgpack.decode(frame[start:])
    except (msgspec.DecodeError, ValueError, RecursionError):  # it is mutated already
        return frame
    part: Any = fields
    while True:
        if not isinstance(part, dict | list) or not part:
            return frame
        keys = [*part] if isinstance(part, dict) else [*range(len(part))]
        key = rng.choice(keys)
        if isinstance(part[key], dict | list) and part[key] and rng.random() < 0.8:
            part = part[key]
            continue
        part[key] = rng.choice(ODD)
        return frame[:start] + msgspec.msgpack.encode(fields)


def target(folder: Path) -> EngineDoor:
    return EngineDoor(host_server())
