"""A publisher's packets between a forger's, who knows its stream: what a reader makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from struct import Struct

import numpy as np

from streamenc.errors import InputError, WireError
from streamenc.graph.clock import MonotonicClock
from streamenc.graph.frames import Frame
from streamenc.io.network.packets import PacketReader
from streamenc.io.network.repacking import flagged
from streamenc.io.network.wire import (
    HEADER_BYTES,
    Data,
    End,
    decode,
    encode_end,
    encode_frame,
    encode_info,
)
from tests.campaign.target import mutated
from tests.campaign.targets.wirebytes import CODES

# The publisher's frames: their times are even, the forger's are not.
STREAM, FRAMES = 7, 40
GOOD, FORGED = 0, 1
HEAD = Struct(">BI")


def frame(seq: int, forged: bool = False) -> Frame:
    return Frame(np.zeros((8, 1), np.uint16), seq % 2**40 * 2 + forged, 1920, seq)


class PacketSequences:
    """`PacketReader` at an address where strangers publish, too.

    A case is packets, each behind a byte that says whose it is, and its length. Those of the forger
    that have the number that is due, or the next, are left out: a reader cannot tell them from the
    publisher's. Whatever else it says, the publisher's frames are delivered, once and in order.
    """

    seconds, peak_bytes = 0.5, 64 << 20

    def case(self, rng: Random) -> bytes:
        packets = [(GOOD, encode_info(CODES, STREAM, 10**18))]
        for seq in range(FRAMES):
            packets.append((GOOD, encode_frame(frame(seq), CODES, STREAM, sent_ms=80 * seq)))
            if rng.random() < 0.5:
                packets += [(FORGED, packet) for packet in self._forged(rng, seq + 1)]
        packets.append((GOOD, encode_end(End(STREAM, FRAMES, (FRAMES,)))))
        return b"".join(HEAD.pack(whose, len(packet)) + packet for whose, packet in packets)

    def _forged(self, rng: Random, due: int) -> list[bytes]:
        match rng.randrange(7):
            case 0:  # numbers far ahead, one or some in a row
                far = rng.choice((FRAMES + 1, 1000, 4000, 10**5, 2**40, 2**61, 2**63 - 10))
                return [self._data(rng, far + i) for i in range(rng.choice((1, 1, 2, 5)))]
            case 1:  # what came before
                return [self._data(rng, rng.randrange(due))]
            case 2:
                ends = rng.choice((0, due - 1, due, due + 1, 2**62))
                return [encode_end(End(STREAM, ends, (ends,), rng.choice(("", "forged"))))]
            case 3:  # other publishers, of the same kind or another
                info = replace(CODES, model=rng.choice(("demo", "other")))
                streams = [rng.choice((STREAM, rng.getrandbits(60)))] * rng.choice((1, 1, 20))
                infos = [encode_info(info, stream + i, 1) for i, stream in enumerate(streams)]
                return [*infos, encode_frame(frame(due, True), CODES, STREAM + 1)]
            case 4:  # repeated, with another flag
                return [flagged(encode_frame(frame(due - 1), CODES, STREAM))]
            case 5:
                return [rng.randbytes(rng.choice((0, 5, 100)))]
            case _:
                packet = encode_frame(frame(due, True), CODES, STREAM)
                return [packet[:HEADER_BYTES] + mutated(packet[HEADER_BYTES:], rng)]

    def _data(self, rng: Random, seq: int) -> bytes:
        return encode_frame(
            frame(seq, True), CODES, STREAM, sent_ms=rng.choice((None, 0, 80 * FRAMES, 2**62))
        )

    def take(self, data: bytes) -> None:
        reader = PacketReader(MonotonicClock(), shared=True)
        written: list[int] = []
        read: list[int] = []
        for whose, packet in _parted(data):
            due = len(written)
            if whose == FORGED and _number(packet) in (due, due + 1):
                continue
            if whose == GOOD and (number := _number(packet)) is not None:
                written.append(number)
            got = reader.feed(packet)
            if got is not None and got.pts % 2 == 0:
                read.append(got.seq)
        reader.settle()
        assert read == written, (read, written)
        if reader.malformed:
            raise InputError(f"{reader.malformed} packets were refused")


def _parted(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= HEAD.size:
        whose, length = HEAD.unpack_from(data)
        yield whose, data[HEAD.size : HEAD.size + length]
        data = data[HEAD.size + length :]


def _number(packet: bytes) -> int | None:
    """Of a frame of the publisher's stream."""
    try:
        got = decode(packet)
    except WireError:
        return None
    return got.seq if isinstance(got, Data) and got.stream == STREAM else None


def target(folder: Path) -> PacketSequences:
    return PacketSequences()
