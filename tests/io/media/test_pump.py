from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator
from fractions import Fraction

import numpy as np
import pytest

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.pump import Item, Pump

INFO = StreamInfo("video", Fraction(1, 25), Fraction(25), (3, None, 1, 1), "uint8")
DATA = np.zeros((3, 1, 1, 1), np.uint8)


class Script:
    """INFO and `count` frames, each when `gate` lets it through; then `at_end`."""

    def __init__(self, count: int, at_end: Callable[[], None] = lambda: None) -> None:
        self.gate = threading.Semaphore(0)
        self.made = 0
        self.closed = threading.Event()
        self._count, self._at_end = count, at_end

    def play(self) -> Generator[Item, None, None]:
        try:
            yield INFO
            for number in range(self._count):
                self.gate.acquire(timeout=10)
                self.made += 1
                yield Frame(DATA, number, 1, number)
            self._at_end()
        finally:
            self.closed.set()

    def let(self, count: int) -> None:
        self.gate.release(count)

    def wait_for(self, made: int) -> None:
        until_seconds = time.monotonic() + 10
        while self.made < made and time.monotonic() < until_seconds:
            time.sleep(0.01)
        time.sleep(0.05)
        assert self.made == made


def fail() -> None:
    raise ValueError("broken")


def test_items_come_in_order_and_then_the_end() -> None:
    script, halt = Script(10), threading.Event()
    script.let(10)
    pump = Pump(script.play(), halt, capacity=3)
    assert pump.get(5) is INFO
    assert [item.seq for item in (pump.get(5) for _ in range(10)) if isinstance(item, Frame)] == [
        *range(10)
    ]
    assert pump.get(5) is None and pump.get(0) is None
    assert script.closed.is_set()
    pump.close()


def test_what_came_before_an_error_is_delivered_first() -> None:
    script = Script(2, fail)
    script.let(2)
    pump = Pump(script.play(), threading.Event(), capacity=9)
    assert [pump.get(5) is not None for _ in range(3)] == [True] * 3
    with pytest.raises(ValueError, match="broken"):
        pump.get(5)
    assert pump.get(5) is None
    pump.close()


def test_nothing_within_the_time_is_empty() -> None:
    script = Script(1)
    pump = Pump(script.play(), threading.Event(), capacity=2)
    assert pump.get(5) is INFO
    with pytest.raises(queue.Empty):
        pump.get(0.05)
    script.let(1)
    assert isinstance(pump.get(5), Frame)
    pump.close()


def test_it_waits_for_a_reader_that_is_late() -> None:
    script = Script(50)
    script.let(50)
    pump = Pump(script.play(), threading.Event(), capacity=3)
    assert pump.get(5) is INFO
    script.wait_for(4)  # three are kept, one is in hand
    assert isinstance(pump.get(5), Frame)
    script.wait_for(5)
    pump.close()
    assert script.closed.is_set()


def test_the_newest_are_kept_and_the_loss_is_flagged_and_counted() -> None:
    script = Script(50)
    pump = Pump(script.play(), threading.Event(), capacity=3, keep_newest=lambda track: True)
    assert pump.get(5) is INFO
    script.let(2)
    frames = [pump.get(5), pump.get(5)]
    script.let(20)
    script.wait_for(22)
    frames += [pump.get(5) for _ in range(3)]
    script.let(1)
    frames.append(pump.get(5))
    got = [(f.seq, f.discontinuity) for f in frames if isinstance(f, Frame)]
    assert got == [(0, False), (1, False), (19, True), (20, False), (21, False), (22, False)]
    assert pump.lost == 17
    pump.close()


def test_each_track_is_kept_for_itself() -> None:
    def play() -> Generator[Item, None, None]:
        yield INFO
        for number in range(20):
            yield Frame(DATA, number, 1, number, track=1)
            if number < 3:
                yield Frame(DATA, number, 1, number, track=0)
        ended.set()

    ended = threading.Event()
    pump = Pump(play(), threading.Event(), capacity=3, keep_newest=lambda track: track == 1)
    assert pump.get(5) is INFO and ended.wait(5)
    frames = [pump.get(5) for _ in range(6)]
    got = [(f.track, f.seq, f.discontinuity) for f in frames if isinstance(f, Frame)]
    assert got == [(0, n, False) for n in range(3)] + [(1, n, n == 17) for n in range(17, 20)]
    assert pump.lost == 17 and pump.get(5) is None
    pump.close()


def test_what_will_come_is_never_given_up() -> None:
    script = Script(20)
    script.let(20)
    pump = Pump(script.play(), threading.Event(), capacity=2, keep_newest=lambda track: True)
    time.sleep(0.2)
    assert pump.get(5) is INFO
    pump.close()


def test_close_leaves_a_read_that_does_not_return() -> None:
    released = threading.Event()
    script = Script(0, lambda: released.wait(10))
    pump = Pump(script.play(), threading.Event(), capacity=2)
    assert pump.get(5) is INFO
    began = time.monotonic()
    pump.close()
    assert time.monotonic() - began < 2
    assert not script.closed.is_set()
    released.set()
    assert script.closed.wait(5)
