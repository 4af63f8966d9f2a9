"""Opus packets in order, late, twice, lost, and around the ends of their counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import av
import numpy as np
import pytest

from streamenc.serve.adapters.soundpackets import HELD, SoundPackets

FRAME = 960


@dataclass
class Packet:
    sequence_number: int
    timestamp: int
    _data: bytes


def packets(count: int, number: int = 0, timestamp: int = 0) -> list[Packet]:
    encoder = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.format, encoder.layout = 48_000, "s16", "mono"
    encoder.options = {"application": "voip"}
    noise = np.random.default_rng(0).integers(-5000, 5000, (count + 1) * FRAME, dtype=np.int16)
    payloads: list[bytes] = []
    for at in range(count + 1):
        piece = noise[None, at * FRAME : (at + 1) * FRAME]
        frame = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48_000, at * FRAME
        payloads += map(bytes, encoder.encode(frame))
    return [
        Packet((number + i) % 2**16, (timestamp + i * FRAME) % 2**32, payload)
        for i, payload in enumerate(payloads[:count])
    ]


def taken(order: list[Packet]) -> tuple[list[tuple[int, bool]], SoundPackets]:
    got: list[tuple[int, np.ndarray[Any, Any], bool]] = []
    sound = SoundPackets(lambda *piece: got.append(piece))
    for packet in order:
        assert sound.add(packet) == (False, None)
    assert all(samples.shape == (2, FRAME) for _, samples, _ in got)
    return [(pts // FRAME, missing) for pts, _, missing in got], sound


@pytest.mark.parametrize(("number", "timestamp"), [(0, 0), (65_533, 2**32 - 2 * FRAME), (7, 12345)])
def test_all_in_order_goes_on_at_once(number: int, timestamp: int) -> None:
    order = packets(8, number, timestamp)
    got, sound = taken(order)
    assert got == [(i, False) for i in range(8)]
    for count in range(1, 8):  # nothing is held back
        assert len(taken(order[:count])[0]) == count
    assert not sound.lost and not sound.late


def test_one_that_is_late_is_waited_for() -> None:
    order = packets(8)
    order[2:5] = [order[3], order[4], order[2]]
    got, sound = taken(order)
    assert got == [(i, False) for i in range(8)] and not sound.lost
    assert len(taken(order[:4])[0]) == 2


def test_one_that_is_lost_is_given_up_and_nothing_is_held_longer() -> None:
    order = packets(12)
    lost = order.pop(3)
    got, sound = taken(order)
    assert got == [(i, i == 4) for i in range(12) if i != 3]
    assert sound.lost == 1
    assert len(taken(order[: 3 + HELD])[0]) == 3
    assert len(taken(order[: 3 + HELD + 1])[0]) == 3 + HELD + 1
    got, sound = taken([*order, lost, order[-1]])  # too late, and twice
    assert len(got) == 11 and sound.late == 2


def test_a_sender_that_begins_anew_and_garbage() -> None:
    order = packets(6)
    again = [Packet((p.sequence_number + 30_000) % 2**16, p.timestamp, p._data) for p in order]
    got, _ = taken([*order[:3], *again[3:]])
    assert got == [(i, False) for i in range(6)]
    order[2] = Packet(2, 2 * FRAME, b"\xff\xff\xff")
    order[4] = Packet(4, 4 * FRAME, b"")
    got, sound = taken(order)
    assert got == [(0, False), (1, False), (3, True), (5, True)] and sound.lost == 1
