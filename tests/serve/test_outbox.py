"""Messages are kept until they were acknowledged, within a bound, and what is dropped is told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.graph.frames import Frame
from streamenc.io.network.websocket.livemessages import Dropped, Error, Marked
from streamenc.serve.streams.attachment import Attachment
from streamenc.serve.streams.outbox import MESSAGE_BYTES, Outbox

FRAME = Frame(np.zeros((1, 1), np.uint8), 0, 1, 0)
SIZE = 100


def outbox(messages: int = 10, window: int = 0) -> Outbox:
    box = Outbox(messages * (SIZE + MESSAGE_BYTES), lambda frame: b"!" * SIZE)
    box.window = window
    return box


def put(box: Outbox, count: int = 1) -> None:
    for _ in range(count):
        box.put(FRAME, b"." * SIZE)


def drained(box: Outbox, most: int = 10**6) -> list[Any]:
    sent = []
    while len(sent) < most and (message := box.peek()) is not None:
        box.went()
        sent.append(message)
    return sent


def test_what_was_not_acknowledged_comes_again() -> None:
    box = outbox(window=8)
    put(box, 6)
    assert [m.n for m in drained(box, 4)] == [0, 1, 2, 3]
    box.acknowledge(2, 8)
    assert box.again_from(3)
    assert [m.n for m in drained(box)] == [3, 4, 5]
    assert not box.again_from(1), "it was acknowledged, and is gone"


def test_a_client_is_sent_no_more_than_it_can_hold() -> None:
    box = outbox(window=3)
    put(box, 6)
    assert len(drained(box)) == 3
    box.acknowledge(1, 3)
    assert [m.n for m in drained(box)] == [3]
    with pytest.raises(ValueError, match="5 messages are acknowledged, and 4 were sent"):
        box.acknowledge(5, 3)


def test_who_acknowledges_nothing_may_come_back_as_far_as_the_bound_reaches() -> None:
    box = outbox(messages=10)
    for _ in range(25):
        put(box)
        drained(box)
    assert not box.full
    assert not box.again_from(14)
    assert box.again_from(15)
    assert [m.n for m in drained(box)] == list(range(15, 25))


def test_dropped_packets_leave_a_message_in_their_place() -> None:
    box = outbox(messages=8, window=100)
    put(box, 2)
    box.put(Marked("here", 0, 2), "x" * SIZE)
    put(box, 9)
    assert box.full and box.drop_oldest() == box.dropped
    sent = drained(box)
    assert sent[-1].n == 11
    told = [m for m in sent if isinstance(m.what, Dropped)]
    assert sum(m.what.packets for m in told) == box.dropped > 0
    assert [m.what.id for m in sent if isinstance(m.what, Marked)] == ["here"]
    for message in told:
        assert message.what.n == message.n
    after = sent[sent.index(told[-1]) + 1 :]
    frames = [m for m in after if isinstance(m.what, Frame)]
    assert frames[0].packet.startswith(b"!") and not any(
        m.packet.startswith(b"!") for m in frames[1:]
    )


def test_what_is_dropped_little_by_little_is_told_in_one() -> None:
    box = outbox(messages=8, window=100)
    for _ in range(50):
        put(box)
        if box.full:
            box.drop_oldest()
    told, *frames = drained(box)
    assert isinstance(told.what, Dropped) and told.what.packets == box.dropped == told.n + 1
    assert [m.n for m in frames] == list(range(told.n + 1, 50)) and len(frames) >= 4


def test_what_comes_after_all_was_dropped_is_flagged() -> None:
    box = outbox(messages=0)
    put(box, 3)
    assert box.drop_oldest() == 3
    put(box)
    (told, frame) = drained(box)
    assert isinstance(told.what, Dropped) and told.n == 2
    assert frame.n == 3 and frame.packet.startswith(b"!")


def test_a_client_comes_back_to_where_all_was_dropped() -> None:
    box = outbox(messages=8, window=100)
    put(box, 2)
    assert [m.n for m in drained(box)] == [0, 1]
    box.acknowledge(2, 100)
    for _ in range(30):
        put(box)
        if box.full:
            box.drop_oldest()
    assert box.again_from(2), "nothing that was sent is missing"
    told, *_ = drained(box)
    assert isinstance(told.what, Dropped) and told.n > 2
    assert box.again_from(2), "and it may be lost once more"
    restored = outbox(messages=8, window=100)
    restored.restore(box.unacknowledged(), box.next, box.kept_from)
    assert restored.again_from(2) and not restored.again_from(1)


def test_to_drop_one_by_one_takes_no_long_look_at_each() -> None:
    box = outbox(messages=4000, window=10_000)
    put(box, 4001)
    looks = 0
    for _ in range(1000):
        put(box)
        if box.full:
            looks += 1
            box.drop_oldest()
    assert looks < 10


def test_what_the_client_does_not_read_is_told_once() -> None:
    async def go() -> list[Any]:
        box = outbox(messages=10)
        put(box, 2)
        stream: Any = SimpleNamespace(outbox=box, info_packet=b"info")
        attachment = Attachment(stream)
        for number in range(1000):
            attachment.notify(b"credit %d" % number, instead="credit")
        attachment.notify(Error("bad_packet", "no"))
        came: list[Any] = []
        async for item in attachment:
            came.append(item)
            if item == b"info":  # which waits to be sent, and meanwhile all is dropped
                put(box, 20)
                box.drop_oldest()
                attachment.end("closed", "")
        return came

    credit, error, info, told, *frames = asyncio.run(go())
    assert credit == b"credit 999" and isinstance(error, Error) and info == b"info"
    assert isinstance(told.what, Dropped) and told.what.packets == told.n + 1
    assert [m.n for m in frames] == list(range(told.n + 1, 22))


@given(st.lists(st.sampled_from("pprsad"), max_size=60), st.randoms())
def test_a_client_that_comes_back_misses_nothing(does: list[str], random: Any) -> None:
    box = outbox(messages=1000, window=1000)
    received: list[int] = []
    for step in does:
        if step == "p":
            put(box)
        elif step == "s":
            received += [m.n for m in drained(box, random.randint(0, 3))]
        elif step == "a":
            box.acknowledge(random.randint(box.received, len(received)), 1000)
        elif step == "r":
            # The last of what was sent may be lost on its way.
            del received[random.randint(box.received, len(received)) :]
            assert box.again_from(len(received))
    received += [m.n for m in drained(box)]
    assert received == list(range(box.next))
