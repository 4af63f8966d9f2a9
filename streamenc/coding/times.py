"""When the items that come out of a model are presented: from a count, or from what went in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import TypeVar

from streamenc.graph.timeline import Timeline

T = TypeVar("T")


class StreamTimes(ABC):
    """The times of what went into a model, and so of what comes out."""

    @abstractmethod
    def start(self, pts: int) -> None:
        """A stream begins, whose first item is at `pts`."""

    @abstractmethod
    def took(self, items: int, pts: int, duration: int) -> None:
        """The next items that went in."""


class OutputTimes(StreamTimes):
    """The times of output items, which are asked for one after the other.

    given  Items that came out so far.
    end    pts of the end of what went in.
    """

    given: int
    end: int

    @abstractmethod
    def give(self, items: int, *, last: bool) -> tuple[int, int]:
        """pts and duration of the next items; the stream's last ones end where its input ended."""

    @abstractmethod
    def state(self) -> list[int]:
        """All that `restore` needs to go on from here."""

    @abstractmethod
    def restore(self, state: list[int]) -> None:
        """Raises ValueError for what `state` cannot have given."""


class CountedTimes(OutputTimes):
    """Items at an even rate, counted from the stream's start: sound, in which each sample counts.

    covering  Segments overlap, so a short last one covers more time than its items are apart: it
              lasts to the input's end.
    """

    def __init__(self, rate: Fraction, time_base: Fraction, *, covering: bool) -> None:
        self._rate, self._time_base, self._covering = rate, time_base, covering
        self._timeline = Timeline(rate, time_base)
        self.given = self.end = self._anchor = 0

    def start(self, pts: int) -> None:
        self._timeline.anchor(pts)
        self.given, self.end, self._anchor = 0, pts, pts

    def took(self, items: int, pts: int, duration: int) -> None:
        self.end = pts + duration

    def give(self, items: int, *, last: bool) -> tuple[int, int]:
        pts = self._timeline.pts(self.given)
        self.given += items
        end = self._timeline.pts(self.given)
        if last:
            end = max(pts, self.end if self._covering else min(end, self.end))
        return pts, end - pts

    def state(self) -> list[int]:
        return [self._anchor, self.given, self.end]

    def restore(self, state: list[int]) -> None:
        self._anchor, self.given, self.end = state
        self._timeline.anchor(self._anchor)

    @property
    def left(self) -> int:
        """Items that still lie within the input so far; what a model pads beyond does not."""
        seconds = (self.end - self._anchor) * self._time_base
        return math.floor(seconds * self._rate + Fraction(1, 2)) - self.given


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int  # index of its first item
    items: int
    pts: int
    duration: int


class CarriedTimes(OutputTimes):
    """Items at the times of those that they were made from: video, whose images come when they
    come. Within a frame of several items, time is shared out evenly.

    first_input  Index of the input item with which an output item begins; see Model.first_input.
    """

    def __init__(self, first_input: Callable[[int], Fraction]) -> None:
        self._first_input = first_input
        self._pieces: deque[_Piece] = deque()
        self._taken = 0
        self.given = self.end = 0

    def start(self, pts: int) -> None:
        self._pieces.clear()
        self._taken = self.given = 0
        self.end = pts

    def took(self, items: int, pts: int, duration: int) -> None:
        if items:
            self._pieces.append(_Piece(self._taken, items, pts, duration))
            self._taken += items
        self.end = pts + duration

    def give(self, items: int, *, last: bool) -> tuple[int, int]:
        pts = self._at(self._first_input(self.given))
        self.given += items
        return pts, max(0, self._at(self._first_input(self.given)) - pts)

    def state(self) -> list[int]:
        pieces = [n for p in self._pieces for n in (p.start, p.items, p.pts, p.duration)]
        return [self._taken, self.given, self.end, *pieces]

    def restore(self, state: list[int]) -> None:
        self._taken, self.given, self.end, *pieces = state
        numbers = iter(pieces)
        self._pieces = deque(map(_Piece, numbers, numbers, numbers, numbers))
        if len(pieces) % 4 or sum(piece.items for piece in self._pieces) > self._taken:
            raise ValueError(f"{len(pieces)} numbers of pieces of {self._taken} items")

    def _at(self, item: Fraction) -> int:
        """pts of an input item, or of a fraction of it; those that were asked for before are gone.

        What lies beyond the input, as a model pads it, is at the input's end.
        """
        if item >= self._taken:
            return self.end
        while item >= self._pieces[0].start + self._pieces[0].items:
            self._pieces.popleft()
        piece = self._pieces[0]
        return piece.pts + round(piece.duration * (item - piece.start) / piece.items)


class SegmentTimes(OutputTimes):
    """An item for each that went in, at its own time: text, whose segments come when they come, and
    come again, revised. Within a frame of several, time is shared out evenly.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, int]] = deque()
        self.given = self.end = 0

    def start(self, pts: int) -> None:
        self._waiting.clear()
        self.given, self.end = 0, pts

    def took(self, items: int, pts: int, duration: int) -> None:
        ends = [duration * i // items for i in range(items + 1)] if items else []
        spans = zip(ends, ends[1:], strict=False)
        self._waiting.extend((pts + begin, end - begin) for begin, end in spans)
        self.end = pts + duration

    def give(self, items: int, *, last: bool) -> tuple[int, int]:
        spans = [self._waiting.popleft() for _ in range(items)]
        self.given += items
        (pts, _), (start, duration) = spans[0], spans[-1]
        return pts, max(0, start + duration - pts)

    def state(self) -> list[int]:
        spans = [n for span in self._waiting for n in span]
        return [self.given, self.end, *spans]

    def restore(self, state: list[int]) -> None:
        self.given, self.end, *spans = state
        numbers = iter(spans)
        self._waiting = deque(zip(numbers, numbers, strict=True))


class ImageTimes(StreamTimes):
    """Which of a decoder's images are shown, and when: as many as were encoded.

    An encoder completes its last hop by repeating an image. It shows in that item's duration,
    which is then too short for the images that the decoder makes of it. Whether the stream goes
    on after such an item is not known yet, so its images wait for the next one, or the end.

    first_input  Index of the code or latent, or fraction of it, that an image begins with.
    image_ticks  Time from one image to the next, as the stream's rate says.
    """

    def __init__(self, first_input: Callable[[int], Fraction], image_ticks: Fraction) -> None:
        self._first_input = first_input
        self._image_ticks = image_ticks
        self._pieces: deque[_Piece] = deque()
        self._waiting: list[object] = []
        self._taken = self._shown = 0

    def start(self, pts: int) -> None:
        self._pieces.clear()
        self._waiting.clear()
        self._taken = self._shown = 0

    def took(self, items: int, pts: int, duration: int) -> None:
        for index in range(items):
            start, stop = (duration * i // items for i in (index, index + 1))
            self._pieces.append(_Piece(self._taken, 1, pts + start, stop - start))
            self._taken += 1

    def show(self, images: Sequence[T], *, last: bool) -> Iterator[tuple[T, int, int]]:
        """The next images with pts and duration; those that wait come with a later call."""
        waiting: list[T] = [*self._waiting, *images]  # type: ignore[list-item]
        self._waiting.clear()
        numbered = enumerate(waiting, self._shown)
        groups = [
            (item, [image for _, image in group])
            for item, group in groupby(numbered, lambda pair: int(self._first_input(pair[0])))
        ]
        for item, group in groups:
            while self._pieces[0].start < item:
                self._pieces.popleft()
            piece = self._pieces[0]
            fitting = min(len(group), max(1, round(piece.duration / self._image_ticks)))
            if fitting < len(group) and item == groups[-1][0]:
                if not last:
                    self._waiting.extend(group)
                    return
                group = group[:fitting]
            self._shown += len(group)
            for index, image in enumerate(group):
                begin, end = (piece.duration * i // len(group) for i in (index, index + 1))
                yield image, piece.pts + begin, end - begin
