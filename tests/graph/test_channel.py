from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc.errors import UsageError
from streamenc.graph.channel import Channel
from streamenc.graph.clock import VirtualClock
from streamenc.graph.edge import Policy
from streamenc.graph.frames import Frame


def frame(seq: int, track: int = 0, arrived_ns: int = 0) -> Frame:
    data = np.zeros((1, 4), np.float32)
    return Frame(data, pts=4 * seq, duration=4, seq=seq, track=track, arrived_ns=arrived_ns)


def drain(channel: Channel) -> list[Frame]:
    got = []
    while channel.peek() is not None:
        got.append(channel.receive_nowait())
    return got


def run(main: Callable[[], Awaitable[None]]) -> None:
    anyio.run(main)


def test_block_refuses_above_capacity_and_keeps_order() -> None:
    channel = Channel(2)
    channel.send_nowait(frame(0))
    channel.send_nowait(frame(1))
    with pytest.raises(anyio.WouldBlock):
        channel.send_nowait(frame(2))
    assert [f.seq for f in drain(channel)] == [0, 1]
    statistics = channel.statistics()
    assert (statistics.sent, statistics.received, statistics.dropped) == (2, 2, 0)
    assert statistics.high_water == 2


def test_drop_oldest_keeps_the_newest_and_flags_the_first_after_the_loss() -> None:
    channel = Channel(3, "drop_oldest")
    for seq in range(5):
        channel.send_nowait(frame(seq))
    assert [(f.seq, f.discontinuity) for f in drain(channel)] == [
        (2, True), (3, False), (4, False),
    ]  # fmt: skip
    assert channel.statistics().dropped == 2


def test_latest_keeps_one_frame_whatever_the_capacity() -> None:
    channel = Channel(8, "latest")
    assert channel.capacity == 1
    for seq in range(3):
        channel.send_nowait(frame(seq))
    assert [(f.seq, f.discontinuity) for f in drain(channel)] == [(2, True)]
    channel.send_nowait(frame(3))
    assert [(f.seq, f.discontinuity) for f in drain(channel)] == [(3, False)]


def test_a_loss_flags_the_next_frame_of_its_own_track() -> None:
    channel = Channel(2, "drop_oldest")
    for seq, track in ((0, 0), (0, 1), (1, 1), (1, 0)):
        channel.send_nowait(frame(seq, track))
    # 0/0 and 0/1 were dropped.
    assert [(f.track, f.discontinuity) for f in drain(channel)] == [(1, True), (0, True)]
    channel.send_nowait(frame(2, 0))
    assert not channel.receive_nowait().discontinuity


def test_flagging_leaves_the_frame_of_the_other_branches_alone() -> None:
    channel = Channel(1, "drop_oldest")
    channel.send_nowait(frame(0))
    shared = frame(1)
    channel.send_nowait(shared)
    received = channel.receive_nowait()
    assert received.discontinuity and not shared.discontinuity
    assert received.data is shared.data


def test_the_four_outcomes() -> None:
    channel = Channel(2)
    with pytest.raises(anyio.WouldBlock):
        channel.receive_nowait()
    channel.send_nowait(frame(0))
    channel.close_send()
    channel.close_send()
    with pytest.raises(anyio.ClosedResourceError):
        channel.send_nowait(frame(1))
    assert not channel.ended
    assert channel.receive_nowait().seq == 0
    assert channel.ended
    with pytest.raises(anyio.EndOfStream):
        channel.receive_nowait()

    other = Channel(2)
    other.send_nowait(frame(0))
    other.close_receive()
    other.close_receive()
    with pytest.raises(anyio.BrokenResourceError):
        other.send_nowait(frame(1))
    with pytest.raises(anyio.ClosedResourceError):
        other.receive_nowait()
    statistics = other.statistics()
    assert (statistics.sent, statistics.dropped, statistics.in_flight) == (1, 0, 1)


def test_a_full_channel_makes_the_sender_wait_until_there_is_room() -> None:
    async def main() -> None:
        channel = Channel(1)
        await channel.send(frame(0))
        with anyio.move_on_after(0.05) as patience:
            await channel.send(frame(1))
        assert patience.cancelled_caught
        assert channel.statistics().sent == 1  # a cancelled send has not sent
        async with anyio.create_task_group() as group:
            group.start_soon(channel.send, frame(2))
            await anyio.wait_all_tasks_blocked()
            assert (await channel.receive()).seq == 0
            assert (await channel.receive()).seq == 2

    run(main)


def test_a_waiting_receiver_wakes_on_a_frame_and_on_the_end() -> None:
    async def main() -> None:
        channel = Channel()
        got: list[int] = []

        async def receive() -> None:
            async for received in channel:
                got.append(received.seq)

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await channel.send(frame(0))
            await anyio.wait_all_tasks_blocked()
            assert got == [0]
            channel.close_send()

    run(main)


@pytest.mark.parametrize("end", ["close_send", "close_receive"])
def test_a_waiting_sender_wakes_when_either_end_closes(end: str) -> None:
    async def main() -> None:
        channel = Channel(1)
        await channel.send(frame(0))
        wanted = anyio.ClosedResourceError if end == "close_send" else anyio.BrokenResourceError

        async def send() -> None:
            with pytest.raises(wanted):
                await channel.send(frame(1))

        async with anyio.create_task_group() as group:
            group.start_soon(send)
            await anyio.wait_all_tasks_blocked()
            getattr(channel, end)()

    run(main)


def test_a_sender_that_never_waits_lets_the_receiver_run() -> None:
    async def main() -> None:
        channel = Channel(2, "drop_oldest")
        got: list[int] = []

        async def receive() -> None:
            async for received in channel:
                got.append(received.seq)

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            for seq in range(100):
                await channel.send(frame(seq))
            channel.close_send()
        assert len(got) > 50 and got == sorted(got)

    run(main)


def test_queue_wait_is_measured_on_the_clock() -> None:
    async def main() -> None:
        clock = VirtualClock()
        channel = Channel(clock=clock)
        await channel.send(frame(0))
        await clock.sleep_until_ns(30_000_000)
        await channel.receive()
        assert channel.queue_wait.max_ns == 30_000_000

    run(main)


def test_what_is_too_old_is_given_up_and_the_next_is_flagged() -> None:
    async def main() -> None:
        clock = VirtualClock()
        channel = Channel(3, max_age_ms=50, clock=clock)
        for seq in range(3):
            channel.send_nowait(frame(seq, arrived_ns=clock.now_ns()))
            await clock.sleep_until_ns(clock.now_ns() + 20_000_000)
        # 60, 40 and 20 ms old: the second goes with the first, and a full channel has room.
        channel.send_nowait(frame(3, arrived_ns=clock.now_ns()))
        statistics = channel.statistics()
        assert (statistics.dropped, statistics.expired, statistics.max_age_ms) == (2, 2, 50)
        head = channel.peek()
        assert head is not None and head.seq == 2
        got = [channel.receive_nowait() for _ in range(2)]
        assert [(f.seq, f.discontinuity) for f in got] == [(2, True), (3, False)]

        channel.send_nowait(frame(4, arrived_ns=clock.now_ns()))
        channel.close_send()
        await clock.sleep_until_ns(clock.now_ns() + 60_000_000)
        with pytest.raises(anyio.EndOfStream):
            await channel.receive()
        statistics = channel.statistics()
        assert statistics.sent == statistics.received + statistics.dropped == 5

    run(main)


def test_a_track_loses_nothing_for_the_age_of_another() -> None:
    async def main() -> None:
        clock = VirtualClock()
        channel = Channel(8, max_age_ms=50, clock=clock)
        for seq, track, arrived_ms in ((0, 1, 0), (0, 0, 30), (1, 1, 30), (1, 0, 30), (2, 1, 30)):
            channel.send_nowait(frame(seq, track, arrived_ms * 10**6))
        await clock.sleep_until_ns(60_000_000)
        got = [(f.track, f.seq, f.discontinuity) for f in drain(channel)]
        assert got == [(0, 0, False), (0, 1, False), (1, 2, True)]
        assert channel.statistics().expired == 2

    run(main)


def test_what_is_still_ahead_of_a_frame_is_allowed_for_up_to_half() -> None:
    async def main() -> None:
        clock, ahead_ms = VirtualClock(), 0
        channel = Channel(max_age_ms=50, clock=clock, ahead_ns=lambda: ahead_ms * 10**6)
        channel.send_nowait(frame(0, arrived_ns=0))
        await clock.sleep_until_ns(24_000_000)
        ahead_ms = 10_000
        assert channel.peek() is not None  # whatever is ahead: something has to be taken
        await clock.sleep_until_ns(40_000_000)
        ahead_ms = 10
        assert channel.peek() is not None
        ahead_ms = 11
        assert channel.peek() is None

    run(main)


def test_a_sender_that_waits_goes_on_where_age_makes_room() -> None:
    async def main() -> None:
        clock = VirtualClock()
        channel = Channel(1, max_age_ms=50, clock=clock)
        channel.send_nowait(frame(0, arrived_ns=0))
        async with anyio.create_task_group() as group:
            group.start_soon(channel.send, frame(1, arrived_ns=60_000_000))
            await clock.sleep_until_ns(60_000_000)
            assert (await channel.receive()).seq == 1

    run(main)


@pytest.mark.parametrize("max_age_ms", [0, -1, float("inf"), float("nan")])
def test_an_age_is_a_time(max_age_ms: float) -> None:
    with pytest.raises(UsageError, match=f"'a -> b' got max_age_ms={max_age_ms}"):
        Channel(max_age_ms=max_age_ms, name="a -> b")


@pytest.mark.parametrize(
    ("capacity", "policy", "message"),
    [(0, "block", "capacity 0"), (4, "newest", "known are block, drop_oldest, latest")],
)
def test_bad_options(capacity: int, policy: Policy, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Channel(capacity, policy, name="a -> b")


@dataclass
class Seen:
    """The model that the channel is compared with: plain lists."""

    kept: list[int] = field(default_factory=list)
    lost: int = 0


@given(
    capacity=st.integers(1, 5),
    policy=st.sampled_from(["block", "drop_oldest", "latest"]),
    steps=st.lists(st.sampled_from(["send", "receive", "close"]), max_size=60),
)
def test_accounts_for_every_frame_at_every_instant(
    capacity: int, policy: Policy, steps: list[str]
) -> None:
    channel = Channel(capacity, policy)
    model = Seen()
    seq, last, closed = 0, -1, False
    for step in steps:
        if step == "send" and not closed:
            try:
                channel.send_nowait(frame(seq))
            except anyio.WouldBlock:
                assert policy == "block" and len(model.kept) == capacity
            else:
                model.kept.append(seq)
                if len(model.kept) > channel.capacity:
                    model.kept.pop(0)
                    model.lost += 1
                seq += 1
        elif step == "receive" and model.kept:
            received = channel.receive_nowait()
            assert received.seq == model.kept.pop(0)
            assert received.discontinuity == (received.seq != last + 1)
            last = received.seq
        elif step == "close":
            channel.close_send()
            closed = True
        statistics = channel.statistics()
        assert statistics.sent == seq
        assert statistics.dropped == model.lost
        assert statistics.in_flight == len(model.kept) <= channel.capacity
        assert statistics.sent == statistics.received + statistics.dropped + statistics.in_flight
