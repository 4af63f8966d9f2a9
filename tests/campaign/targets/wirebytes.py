"""Packets of the wire format: mutated ones, and well-formed ones that say absurd things."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from random import Random

import msgspec
import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.wire import (
    HEADER_BYTES,
    End,
    decode,
    encode_end,
    encode_frame,
    encode_info,
)
from tests.campaign.target import mutated

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)
FRAME = Frame(np.arange(8, dtype="u2")[:, None], 0, 1920, seq=0)
SEEDS = (
    encode_info(CODES, 7, 10**18),
    encode_frame(FRAME, CODES, 7),
    encode_end(End(7, 3, (3,))),
)
ABSURD = (None, True, -1, 0, 2**31, 2**63 - 1, 2**63, -(2**63), 1e308, float("nan"), "", b"")


class WireBytes:
    """`wire.decode` on a packet."""

    seconds, peak_bytes = 0.5, 64 << 20

    def case(self, rng: Random) -> bytes:
        seed = rng.choice(SEEDS)
        if rng.random() < 0.5:
            return mutated(seed, rng)
        fields = msgspec.msgpack.decode(seed[HEADER_BYTES:])
        fields[rng.randrange(len(fields))] = rng.choice((*ABSURD, [[]] * 3, {"a": 1}, "x" * 5000))
        return seed[:HEADER_BYTES] + msgspec.msgpack.encode(fields)

    def take(self, data: bytes) -> None:
        decode(data)


def target(folder: Path) -> WireBytes:
    return WireBytes()
