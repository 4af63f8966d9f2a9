from __future__ import annotations

from fractions import Fraction
from typing import Any

import anyio
import numpy as np
import pytest

from streamenc import io
from streamenc.errors import UsageError
from streamenc.graph.clock import VirtualClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import Sink
from streamenc.io.media.pattern import PATTERNS, PatternSource, read_number


def play(address: str = "bars", **options: Any) -> tuple[StreamInfo, list[Frame]]:
    source = PatternSource(address, live=False, **options)
    return source.open_blocking(), list(iter(source.read, None))


@pytest.mark.parametrize("address", PATTERNS)
@pytest.mark.parametrize("size", ["320x240", "64x64", "24x24", "123x77", "1280x720"])
def test_each_image_says_its_number(address: str, size: str) -> None:
    width, height = map(int, size.split("x"))
    info, frames = play(address, size=size, seconds=0.4)
    assert info == StreamInfo(
        "video", Fraction(1, 25), Fraction(25), (3, None, height, width), "uint8"
    )
    assert [read_number(frame.data) for frame in frames] == list(range(10))
    assert all(frame.data.shape == (3, 1, height, width) for frame in frames)
    assert all(frame.data.dtype == np.uint8 for frame in frames)
    assert [(frame.pts, frame.duration, frame.seq) for frame in frames] == [
        (n, 1, n) for n in range(10)
    ]


@pytest.mark.parametrize("address", PATTERNS)
def test_it_is_the_same_each_time_and_moves(address: str) -> None:
    _, frames = play(address, seconds=1)
    _, again = play(address, seconds=1)
    for frame, other in zip(frames, again, strict=True):
        np.testing.assert_array_equal(frame.data, other.data)
    body = [frame.data[:, 0, 20:] for frame in frames]
    assert all(
        (before != after).mean() > 0.01 for before, after in zip(body, body[1:], strict=False)
    )


def test_the_seed_changes_what_is_random() -> None:
    for address, differs in (("bars", False), ("motion", True), ("noise", True)):
        _, (frame,) = play(address, seconds=0.04)
        _, (other,) = play(address, seconds=0.04, seed=1)
        assert (frame.data != other.data).any() == differs


def test_squares_stay_inside_for_long() -> None:
    source = PatternSource("motion", size="64x48", live=False)
    source.open_blocking()
    draw = PATTERNS["motion"](64, 48, 3)
    assert all(draw(number).shape == (3, 48, 64) for number in range(0, 100_000, 997))


def test_the_number_is_read_from_a_small_blurred_copy() -> None:
    source = PatternSource("noise", size="384x256", live=False)
    source.open_blocking()
    source._number = 0xA5C3F0
    frame = source.read()
    assert frame is not None
    small = frame.data.reshape(3, 1, 64, 4, 96, 4).mean((3, 5)).astype(np.uint8)
    assert read_number(small) == 0xA5C3F0


class Arrivals(Sink):
    def __init__(self) -> None:
        self.at: list[tuple[int, int]] = []

    async def open(self, info: StreamInfo) -> None:
        pass

    async def write(self, frame: Frame) -> None:
        self.at.append((read_number(frame.data), self.clock.now_ns()))


def test_live_images_come_at_their_times_on_the_graphs_clock() -> None:
    graph, sink = Graph(clock=VirtualClock()), Arrivals()
    graph.source("test", PatternSource("bars", size="48x32", fps="30000/1001", seconds=120))
    graph.sink("sink", sink, "test")
    report = graph.run_blocking()
    assert report.outcome == "ended"
    assert len(sink.at) == 3596
    period_ns = 1001 * 10**9 / 30_000
    for number, at_ns in sink.at:
        assert at_ns == pytest.approx(number * period_ns, abs=1)


def test_stop_ends_it() -> None:
    async def run() -> int:
        source = PatternSource(fps=100)
        await source.open()
        count = 0
        with anyio.fail_after(5):
            async for _ in source.frames():
                count += 1
                if count == 5:
                    source.stop()
        await source.aclose()
        return count

    assert anyio.run(run) == 5


def test_options() -> None:
    made = io.source("test:noise?size=64x48&fps=12.5&seconds=2&live=false&seed=7", kind="video")
    assert isinstance(made, PatternSource)
    assert (made.size, made.fps, made.live) == ((48, 64), Fraction(25, 2), False)
    assert PatternSource("").address == "bars" and PatternSource().live
    for option, value in (
        ("address", "snow"), ("size", "64"), ("size", "8x8"), ("fps", "1/0"), ("live", "maybe"),
        ("seconds", -1), ("seed", -1),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="pattern" if option == "address" else option):
            PatternSource(**{option: value})
