"""Test images, `test:bars`, `test:motion`, `test:noise`, which say their own number in pixels."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from fractions import Fraction
from typing import Any

import numpy as np

from streamenc import options
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource

NS = 1_000_000_000
NUMBER_BITS = 24
NUMBER_ROWS = 16  # the number takes this part of the height
# Red, green, blue of eight bars: from bright to dark.
BARS = 255 * np.array(
    [(1, 1, 0, 0, 1, 1, 0, 0), (1, 1, 1, 1, 0, 0, 0, 0), (1, 0, 1, 0, 1, 0, 1, 0)], np.uint8
)
SQUARES = 5

Image = np.ndarray[Any, np.dtype[np.uint8]]


class PatternSource(BlockingSource):
    """Video made of numbers alone: the same images for the same options, on every machine.

    Yields uint8 RGB (3, 1, height, width); time base 1 / fps, pts from 0. Along the upper edge,
    cells of black and white write the number of the frame in binary, see `read_number`.

    address  "bars": the eight colours, which move to the left. "motion": squares that move over a
             gradient that does. "noise": random blocks of 8 x 8 pixels, others in each frame.
    size     WIDTHxHEIGHT in pixels.
    fps      Images a second, e.g. 25 or 30000/1001.
    seconds  How long; None is as long as 24 bits count.
    live     Comes in real time, on the graph's clock, like a camera; false comes at once.
    seed     Of all that is random.
    """

    def __init__(
        self,
        address: str = "bars",
        size: str = "320x240",
        fps: str | float | Fraction = 25,
        seconds: str | float | None = None,
        live: str | bool = True,
        seed: str | int = 0,
    ) -> None:
        self.address = options.choice("pattern", address or "bars", PATTERNS)
        self.size = options.size("size", size, low=NUMBER_BITS)
        self.fps = options.rate("fps", fps, 1, 1000)
        self.seconds = None if seconds is None else options.number("seconds", seconds, 0, 1e9)
        self.live = options.flag("live", live)
        self.seed = options.integer("seed", seed, 0, 2**32 - 1)
        endless = 2**NUMBER_BITS
        self._count = endless if self.seconds is None else round(self.seconds * self.fps)
        self._number = 0
        self._draw: Callable[[int], Image] | None = None

    def open_blocking(self) -> StreamInfo:
        height, width = self.size
        self._draw = PATTERNS[self.address](width, height, self.seed)
        return StreamInfo("video", 1 / self.fps, self.fps, (3, None, height, width), "uint8")

    async def frames(self) -> AsyncIterator[Frame]:
        start_ns = self.clock.now_ns()
        while not self._stopped:
            if self.live:
                await self.clock.sleep_until_ns(start_ns + int(self._number / self.fps * NS))
            frame = await self.in_thread(self.read)
            if frame is None:
                return
            yield frame

    def read(self) -> Frame | None:
        if self._draw is None or self._number >= self._count:
            return None
        number = self._number
        self._number += 1
        image = self._draw(number)
        write_number(image, number)
        return Frame(image[:, None], number, 1, number, arrived_ns=self.clock.now_ns())


def write_number(image: Image, number: int) -> None:
    """Into the upper edge of (3, height, width), in place: 24 cells, the highest bit leftmost."""
    height, width = image.shape[-2:]
    columns = np.arange(width) * NUMBER_BITS // width
    bits = number >> (NUMBER_BITS - 1 - columns) & 1
    image[:, : _number_height(height)] = (255 * bits).astype(np.uint8)


def read_number(data: Image) -> int:
    """The number in an image (3, 1, height, width), also after scaling or lossy encoding."""
    height, width = data.shape[-2:]
    rows = data[..., : _number_height(height), :].reshape(-1, width)
    # The middle of each cell: its border may be blurred.
    centres = (np.arange(NUMBER_BITS) + 0.5) * width / NUMBER_BITS
    levels = rows[:, centres.astype(int)].mean(0)
    return int("".join("1" if level > 127 else "0" for level in levels), 2)


def _number_height(height: int) -> int:
    return max(1, height // NUMBER_ROWS)


def _bars(width: int, height: int, seed: int) -> Callable[[int], Image]:
    colours = BARS[:, np.arange(width) * BARS.shape[1] // width]
    step = max(1, width // 128)

    def draw(number: int) -> Image:
        row = np.roll(colours, -step * number, axis=1)
        return np.repeat(row[:, None], height, axis=1)

    return draw


def _motion(width: int, height: int, seed: int) -> Callable[[int], Image]:
    random = np.random.default_rng(seed)
    side = max(4, min(width, height) // 6)
    room = np.array([height - side, width - side]) + 1
    starts = random.integers(0, room, (SQUARES, 2))
    steps = random.integers(1, 4, (SQUARES, 2)) * random.choice((-1, 1), (SQUARES, 2))
    colours = random.integers(0, 256, (SQUARES, 3), dtype=np.uint8)
    column, row = np.arange(width)[None], np.arange(height)[:, None]

    def draw(number: int) -> Image:
        image = np.empty((3, height, width), np.uint8)
        image[0] = _triangle(column + 2 * number)
        image[1] = _triangle(row + number)
        image[2] = _triangle(column + row - number)
        for start, step, colour in zip(starts, steps, colours, strict=True):
            # There and back again between the edges.
            top, left = abs((start + step * number) % (2 * (room - 1) + 1) - room + 1)
            image[:, top : top + side, left : left + side] = colour[:, None, None]
        return image

    return draw


def _triangle(position: np.ndarray[Any, Any]) -> Image:
    """Up from 0 to 254 and down again, in 256 steps."""
    phase = (position % 256).astype(np.uint8)
    wave: Image = np.minimum(phase, 255 - phase) * np.uint8(2)
    return wave


def _noise(width: int, height: int, seed: int) -> Callable[[int], Image]:
    rows, columns = -(-height // 8), -(-width // 8)

    def draw(number: int) -> Image:
        random = np.random.default_rng((seed, number))
        blocks = random.integers(0, 256, (3, rows, columns), dtype=np.uint8)
        return blocks.repeat(8, 1).repeat(8, 2)[:, :height, :width].copy()

    return draw


PATTERNS: dict[str, Callable[[int, int, int], Callable[[int], Image]]] = {
    "bars": _bars,
    "motion": _motion,
    "noise": _noise,
}
