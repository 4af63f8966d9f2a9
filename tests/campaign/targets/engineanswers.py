"""What an engine in another process answers: messages, their blocks of arrays, and its errors."""

from __future__ import annotations

from pathlib import Path
from random import Random

import msgspec
import numpy as np

from streamenc.engine.remote.protocol import (
    MAGIC,
    Block,
    Failure,
    Form,
    Frames,
    Leaving,
    Outgoing,
    Refused,
    Result,
    Told,
    head,
    raised,
    read_engine,
)
from tests.campaign.target import mutated

ODD = (None, -1, 0, 2**31, 2**63 - 1, 2**64 - 1, "", "<f4", b"", [], [2**40] * 9, "x" * 70_000)


def _told() -> list[bytes]:
    out = Outgoing(of_client=False)
    for tag in range(3):
        out.row(tag, 1, [np.zeros((1, 8, 1), "<u2")])
    out.rows([3, 4], Form("<u2", (1, 8, 2)), [np.zeros((1, 8, 2), "<u2")] * 2)
    out.entry(1, Result(5, blob=True), b"snapshot")
    out.entry(1, Failure(6, "InputError", "it is empty"))
    out.entry(1, Failure(7, "EngineFull", "4"))
    return [bytes(frame) for frame in out.frames(Told(1, 3, out.table))]


SEEDS = ([head(Leaving(3.0))], [head(Refused("the engine ends"))], *[_told()] * 4)


class EngineAnswers:
    """A message, taken apart to its last frame."""

    seconds, peak_bytes = 0.5, 64 << 20

    def case(self, rng: Random) -> bytes:
        frames = list(rng.choice(SEEDS))
        at = rng.randrange(len(frames))
        start = len(MAGIC) + 1
        if at or rng.random() < 0.4:
            frames[at] = mutated(frames[at], rng)
        else:
            fields = msgspec.msgpack.decode(frames[0][start:])
            part = fields
            while True:
                key = rng.choice([*part] if isinstance(part, dict) else [*range(len(part))])
                if not isinstance(part[key], dict | list) or not part[key] or rng.random() < 0.2:
                    break
                part = part[key]
            part[key] = rng.choice(ODD)
            frames[0] = frames[0][:start] + msgspec.msgpack.encode(fields)
        return msgspec.msgpack.encode(frames)

    def take(self, data: bytes) -> None:
        try:
            parts = msgspec.msgpack.decode(data, type=list[bytes])
        except (msgspec.DecodeError, RecursionError):
            parts = [data]
        views = [memoryview(part) for part in parts]
        message = read_engine(views)
        if not isinstance(message, Told):
            return
        frames = Frames(views)
        for entry in message.entries:
            if isinstance(entry, Block):
                frames.numbers(entry)
                frames.arrays(entry)
            elif isinstance(entry, Failure):
                str(raised(entry))
            elif entry.blob:
                frames.blob()
        frames.end()


def target(folder: Path) -> EngineAnswers:
    return EngineAnswers()
