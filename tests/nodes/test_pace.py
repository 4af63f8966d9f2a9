"""Pace: on time, without drift, and honest where it falls behind."""

from fractions import Fraction

import anyio
import numpy as np
import pytest

from streamenc.errors import UsageError
from streamenc.graph.clock import VirtualClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.nodes.pace import Pace
from tests.support.pipes import Collect, Given

INFO = StreamInfo("audio", Fraction(1, 44100), Fraction(44100), (1, None), "float32")
DATA = np.zeros((1, 1024), np.float32)


class JumpingClock:
    """A sleep takes no time: it moves the clock."""

    def __init__(self):
        self.ns = 5_000_000_000
        self.slept = []

    def now_ns(self):
        return self.ns

    async def sleep_until_ns(self, due_ns):
        self.slept.append(max(0, due_ns - self.ns))
        self.ns = max(self.ns, due_ns)


def paced(scenario, speed=1.0, info=INFO):
    """Runs `await scenario(pace, clock)` and gives back what it returned."""

    async def main():
        pace = Pace(speed)
        pace.clock = JumpingClock()
        assert await pace.open(info) == info
        result = await scenario(pace, pace.clock)
        assert list(await pace.flush()) == []
        await pace.aclose()
        return result

    return anyio.run(main)


async def push(pace, pts, duration=1024, **fields):
    (out,) = await pace.push(Frame(DATA, pts=pts, duration=duration, seq=0, **fields))
    return out


def test_an_hour_does_not_drift():
    async def scenario(pace, clock):
        start = clock.now_ns()
        for k in range(3600 * 44100 // 1024):
            out = await push(pace, 77 + k * 1024)
            due = start + (k + 1) * 1024 * 10**9 // 44100
            assert 0 <= out.arrived_ns - due <= 1
            assert clock.ns == out.arrived_ns
        assert min(clock.slept) > 0

    paced(scenario)


@pytest.mark.parametrize("speed", [0.5, 3, 1.1])
def test_speed(speed):
    async def scenario(pace, clock):
        start = clock.now_ns()
        for k in range(441):
            await push(pace, k * 100, 100)
        assert clock.ns - start == pytest.approx(1e9 / speed, abs=2)

    paced(scenario, speed)


def test_a_consumer_that_blocked_is_caught_up_with_and_the_wait_counts_as_latency():
    async def scenario(pace, clock):
        start = clock.now_ns()
        await push(pace, 0, 44100)
        clock.ns += 2_500_000_000  # the consumer blocked
        late = [await push(pace, 44100 * k, 44100) for k in (1, 2, 3)]
        assert clock.slept == [10**9, 0, 0, 500_000_000]
        assert [f.arrived_ns - start for f in late] == [2 * 10**9, 3 * 10**9, 4 * 10**9]
        assert clock.ns - start == 4 * 10**9

    paced(scenario)


@pytest.mark.parametrize(("pts", "flag"), [(10**9, False), (-(10**6), False), (44150, True)])
def test_a_jump_goes_on_without_a_pause(pts, flag):
    async def scenario(pace, clock):
        await push(pace, 0, 44100)
        await push(pace, pts, 22050, discontinuity=flag)
        await push(pace, pts + 22050, 22050)
        assert clock.slept == [10**9, 500_000_000, 500_000_000]

    paced(scenario)


def test_a_small_gap_is_waited_out():
    async def scenario(pace, clock):
        await push(pace, 0, 44100)
        await push(pace, 44100 + 2205, 44100)
        assert clock.slept == [10**9, 1_050_000_000]

    paced(scenario)


def test_the_frame_itself_stays_the_same():
    async def scenario(pace, clock):
        return await push(pace, 5, discontinuity=True, scale=0.5)

    out = paced(scenario)
    assert out.data is DATA
    assert (out.pts, out.duration, out.discontinuity, out.scale) == (5, 1024, True, 0.5)


def test_real_time_on_the_real_clock():
    async def main():
        pace = Pace()
        await pace.open(INFO)
        start = pace.clock.now_ns()
        for k in range(10):
            out = await push(pace, k * 882, 882)
        assert pace.clock.now_ns() - start >= 199_000_000
        assert out.arrived_ns - start == pytest.approx(200_000_000, abs=50_000_000)

    anyio.run(main)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_where_it_is_stopped_what_was_heard_comes_and_the_future_does_not(kind):
    """Frames of a second are ahead by five of them, and none is waited for."""
    info = StreamInfo(kind, Fraction(1, 1000), Fraction(1000), (1, None), "float32")
    clock = VirtualClock()
    graph = Graph(clock=clock)
    frames = [Frame(DATA, 1000 * k, 1000, k) for k in range(20)]
    graph.transform("paced", pace := Pace(), graph.source("file", Given(info, frames)))
    graph.sink("sink", sink := Collect(), "paced")

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(graph.run)
            await clock.sleep_until_ns(3_400_000_000)
            graph.stop()

    anyio.run(main)
    report = graph.report()
    assert (report.outcome, report.lost) == ("stopped", 0)
    assert report.wall_seconds == pytest.approx(3.4)
    assert [frame.seq for frame in sink.got] == [0, 1, 2, 3]
    assert sink.got[-1].arrived_ns == (3_400_000_000 if kind == "audio" else 3_000_000_000)
    assert pace._over


def test_refusals():
    for speed in (0, -1, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="speed"):
            Pace(speed)


def test_tracks_of_a_film_keep_one_schedule():
    """Each at its own time, in time bases of their own; a gap in one is no pause."""
    images = StreamInfo("video", Fraction(1, 1000), Fraction(25), (3, None, 1, 1), "uint8")
    film = StreamInfo("mux", Fraction(1, 44_100_000), Fraction(0), (), "", tracks=(INFO, images))

    async def scenario(pace, clock):
        start, due = clock.now_ns(), []
        for track, pts, duration in ((0, 0, 4410), (1, 0, 40), (1, 40, 40), (0, 4410, 4410)):
            (out,) = await pace.push(Frame(DATA, pts, duration, 0, track=track))
            due.append((out.arrived_ns - start) / 1e6)
        (out,) = await pace.push(Frame(DATA, 9080, 40, 0, True, track=1))
        return due, (out.arrived_ns - start) / 1e6

    due, after = paced(scenario, info=film)
    assert due == pytest.approx([100, 0, 40, 200])
    assert after == pytest.approx(200)


def test_text_is_due_when_it_ends_however_long_nothing_was_said():
    info = StreamInfo("text", Fraction(1, 1000), Fraction(0), (1, None), "str")

    async def scenario(pace, clock):
        start = clock.now_ns()
        for pts, due_ms, fields in (
            (0, 900, {}),
            (600_000, 600_900, {}),
            (600_000, 600_900, {"revised": True}),
            (900_000, 900_900, {"discontinuity": True}),
        ):
            (out,) = await pace.push(Frame(np.array([["a"]]), pts, 900, 0, **fields))
            assert out.arrived_ns == clock.now_ns() == start + due_ms * 10**6

    paced(scenario, info=info)
