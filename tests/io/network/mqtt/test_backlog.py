"""What waits for a broker, and what it may lose: bounds, and what is sent again."""

from __future__ import annotations

import pytest

from streamenc.graph.clock import MonotonicClock
from streamenc.io.network.mqtt.backlog import Backlog, Waiting
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.wire import Data, decode
from tests.io.network.test_packets import CODES, code_frame

WRITER = PacketWriter(CODES, MonotonicClock())


def waiting(seq: int) -> Waiting:
    frame = code_frame(seq)
    return Waiting(frame, WRITER.packet(frame), seq + 1, 1)


def published(backlog: Backlog, count: int) -> None:
    for _ in range(count):
        one = backlog.pop()
        one.next_packet()
        backlog.keep(one)


def through(backlog: Backlog) -> list[int]:
    return [one.through for one in backlog.waiting]


def test_what_no_reader_has_is_published_again_before_what_waits() -> None:
    backlog = Backlog(100, 1 << 20)
    for seq in range(6):
        backlog.add(waiting(seq))
    published(backlog, 4)
    assert (len(backlog), backlog.kept, backlog.acked) == (2, 4, 4)
    assert backlog.rewind(2) == 0 and through(backlog) == [1, 2, 3, 4, 5, 6]
    sent = [decode(backlog.pop().next_packet()) for _ in range(6)]
    assert [isinstance(s, Data) and s.resent for s in sent] == [True] * 4 + [False] * 2


def test_what_readers_have_is_forgotten_but_for_the_last_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamenc.io.network.mqtt.backlog.KEEP_FRAMES", 3)
    backlog = Backlog(100, 1 << 20)
    for seq in range(10):
        backlog.add(waiting(seq))
    published(backlog, 10)
    backlog.forget(None)
    assert backlog.kept == 10  # nobody says how far they are: by time alone
    backlog.forget(6)
    assert backlog.kept == 4
    backlog.forget(9)
    assert backlog.kept == 3  # for others, who say nothing
    monkeypatch.setattr("streamenc.io.network.mqtt.backlog.KEEP_S", 0.0)
    backlog.forget(9)
    assert backlog.kept == 1
    backlog.forget(None)
    assert backlog.kept == 0


def test_both_bounds_hold_and_what_they_cost_is_known() -> None:
    size = waiting(0).size_bytes
    for backlog in (Backlog(5, 1 << 20), Backlog(1000, 5 * size + size // 2)):
        for seq in range(12):
            assert backlog.has_room()
            backlog.add(waiting(seq))
            published(backlog, 1)
        assert backlog.kept == 5
        assert backlog.rewind(3) == 4  # 4 to 7 are gone
        assert through(backlog) == [8, 9, 10, 11, 12]


def test_what_waits_takes_the_place_of_what_was_acknowledged() -> None:
    backlog = Backlog(1000, 9 * waiting(0).size_bytes // 2)
    for seq in range(4):
        backlog.add(waiting(seq))
    published(backlog, 4)
    for seq in range(4, 9):
        assert backlog.has_room()
        backlog.add(waiting(seq))
    assert (backlog.kept, len(backlog), backlog.has_room()) == (0, 5, False)
