"""A real X server, without a screen, whose pixels are captured; and what goes wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from streamenc import io
from streamenc.errors import DeviceError, UsageError
from streamenc.io.devices.screen import Screen
from tests.support import xvfb

needs_xvfb = pytest.mark.skipif(bool(xvfb.MISSING), reason=xvfb.MISSING)


@pytest.fixture(scope="module")
def display() -> Iterator[xvfb.Display]:
    with xvfb.display("320x240") as made:
        yield made


@needs_xvfb
def test_the_screen_comes_at_its_rate_in_its_colours(display: xvfb.Display) -> None:
    source: Any = io.source(f"screen:{display.name}?fps=20", kind="video")
    try:
        info = source.open_blocking()
        frames = [source.read() for _ in range(20)]
    finally:
        source.close_blocking()
    assert source.live
    assert (info.kind, info.shape) == ("video", (3, None, 240, 320))
    assert (info.rate, info.time_base) == (20, Fraction(1, 1_000_000))
    assert all(frame.data.shape == (3, 1, 240, 320) for frame in frames)
    # On a machine that is late images are left out, and each of them is counted.
    numbers = [frame.seq for frame in frames]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] - 19 <= source.lost
    span_seconds = float((frames[-1].pts - frames[0].pts) * info.time_base)
    assert span_seconds == pytest.approx((numbers[-1] - numbers[0]) / 20, abs=0.5)
    assert all(frame.duration == 50_000 for frame in frames)


@needs_xvfb
def test_what_is_painted_is_seen(display: xvfb.Display) -> None:
    source = Screen(display.name, fps=30, size="64x48", offset="100,20")
    try:
        source.open_blocking()
        for red, green, blue in ((255, 0, 0), (1, 128, 254), (12, 200, 77)):
            display.fill(110, 30, 8, 4, red << 16 | green << 8 | blue)
            wanted = np.array([red, green, blue], np.uint8)[:, None, None]
            until_seconds = time.monotonic() + 5
            while time.monotonic() < until_seconds:
                frame = source.read()
                assert frame is not None
                if (frame.data[:, 0, 10:14, 10:18] == wanted).all():
                    break
            else:
                pytest.fail(f"never saw {red, green, blue}")
            assert not (frame.data[:, 0, 14:18, 10:18] == wanted).all()
    finally:
        source.close_blocking()


@needs_xvfb
def test_a_part_of_the_screen(display: xvfb.Display) -> None:
    source = Screen(display.name, size="100x50", offset="30,40")
    try:
        assert source.open_blocking().shape == (3, None, 50, 100)
    finally:
        source.close_blocking()
    with pytest.raises(DeviceError, match="that the part lies on it"):
        Screen(display.name, size="400x50").open_blocking()


@needs_xvfb
def test_what_a_late_graph_misses_is_counted_and_flagged(display: xvfb.Display) -> None:
    source = Screen(display.name, fps=50)
    try:
        source.open_blocking()
        first = source.read()
        time.sleep(1)
        frames = [source.read() for _ in range(5)]
    finally:
        source.close_blocking()
    assert first is not None and first.discontinuity == (first.seq > 0)
    assert [bool(frame and frame.discontinuity) for frame in frames[:1]] == [True]
    assert source.lost >= 10
    assert frames[-1] is not None and frames[-1].seq >= source.lost


@needs_xvfb
def test_a_screen_that_goes_away_is_an_error() -> None:
    with xvfb.display() as display:
        source = Screen(display.name, fps=20)
        try:
            source.open_blocking()
            assert source.read() is not None
            display.kill()
            began = time.monotonic()
            with pytest.raises(DeviceError, match=r"screen ':\d+' stopped delivering"):
                while source.read() is not None:
                    pass
            assert time.monotonic() - began < 5
        finally:
            source.close_blocking()


@needs_xvfb
@pytest.mark.skipif(bool(xvfb.NO_RESIZE), reason=xvfb.NO_RESIZE)
def test_a_screen_that_gets_smaller_goes_on() -> None:
    with xvfb.display("320x240") as display:
        source = Screen(display.name, fps=20)
        part = Screen(display.name, fps=20, size="300x200")
        try:
            source.open_blocking(), part.open_blocking()
            assert source.read() is not None
            display.resize(160, 120)
            display.fill(0, 0, 160, 120, 0x00FF00)
            until_seconds = time.monotonic() + 20
            frames = []
            while not source.remarks and time.monotonic() < until_seconds:
                frames.append(source.read())
            frames += [source.read() for _ in range(10)]
            (said,) = source.remarks
            assert "160 x 120" in said and "320 x 240" in said
            assert any(frame and frame.discontinuity for frame in frames)
            assert frames[-1] is not None and frames[-1].data.shape == (3, 1, 240, 320)
            green = np.array([0, 255, 0], np.uint8)[:, None, None]
            assert (frames[-1].data[:, 0] == green).mean() > 0.95  # all but the mouse pointer
            with pytest.raises(
                DeviceError, match="it changed, and now one cannot open .* the part"
            ):
                while part.read() is not None:
                    pass
        finally:
            source.close_blocking(), part.close_blocking()


def test_no_such_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(DeviceError, match="DISPLAY is not set"):
        Screen().open_blocking()
    monkeypatch.setenv("DISPLAY", ":31999")
    with pytest.raises(DeviceError, match="cannot open the screen ':31999'"):
        Screen().open_blocking()


def test_options() -> None:
    made = Screen(":99.0", size="640x480", fps="30000/1001", offset="10,20")
    assert (made.size, made.fps) == ((480, 640), Fraction(30000, 1001))
    for option, value in (("size", "big"), ("fps", 0), ("offset", "10"), ("offset", "-1,2")):
        with pytest.raises(UsageError, match=option):
            Screen(":99.0", **{option: value})
