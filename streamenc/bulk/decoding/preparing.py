"""Pieces: an item's sound or images as models take them, decoded once for all of them."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from streamenc.bulk.decoding.mediareader import MediaReader, Reading
from streamenc.bulk.items import Item
from streamenc.bulk.tokenizejob import TokenizeJob
from streamenc.coding.chain import Specified, preparation
from streamenc.coding.defaults import conceal_ms
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.spec import StreamSpec


class Wanted(msgspec.Struct, frozen=True):
    """What a model takes, as far as its input's preparation asks.

    Attributes:
        name: The model's, for messages.
        channel, size, fit: As the job has them.
    """

    name: str
    spec: StreamSpec
    channel: str = ""
    size: str = ""
    fit: str = ""

    @classmethod
    def of(cls, model: Specified, job: TokenizeJob) -> Wanted:
        return cls(model.name, model.spec, job.channel, job.size, job.fit)

    def same(self, other: Wanted) -> bool:
        """Whether another model of a job takes the very same."""
        ours, theirs = self.spec, other.spec
        return ours.input == theirs.input and conceal_ms(ours) == conceal_ms(theirs)

    def nodes(self) -> list[Transform]:
        """What brings decoded frames to what the model takes. Raises UsageError for options that
        this model cannot have."""
        nodes = preparation(
            self,
            hops=1,
            conceal_ms=conceal_ms(self.spec),
            channel=self.channel or None,
            size=self.size or None,
            fit=self.fit or None,
        )
        nodes.pop("chunk", None)  # steps take what they need
        return list(nodes.values())

    def opened(self, info: StreamInfo) -> list[Transform]:
        """The same, open. Raises FitError."""
        nodes = self.nodes()
        for node in nodes:
            info = node.open(info)
        return nodes


class Piece(NamedTuple):
    """Some of an item.

    Attributes:
        of: Which of the preparations made it, by its place.
        data: (channels, items, ...): floats of sound, bytes of images.
        anew: Whether it does not follow on from the one before it.
    """

    of: int
    data: np.ndarray[Any, Any]
    anew: bool


class Preparing:
    """Reads items for some models.

    Args:
        wanted: What they take; those that take the same share one preparation.

    Attributes:
        of: Which preparation's pieces each model takes, by their places.

    Raises UsageError for options that one of them cannot have: no item could be read.
    """

    def __init__(self, reader: MediaReader, wanted: Sequence[Wanted]) -> None:
        self._reader = reader
        self._distinct: list[Wanted] = []
        self.of: list[int] = []
        for one in wanted:
            one.nodes()
            alike = (at for at, other in enumerate(self._distinct) if one.same(other))
            at = next(alike, len(self._distinct))
            if at == len(self._distinct):
                self._distinct.append(one)
            self.of.append(at)

    def pieces(self, item: Item) -> Generator[Piece | Reading, None, None]:
        """All of an item, and behind it what is known of it then. Raises StreamencError."""
        with self._reader.open(item) as reading:
            chains = [wanted.opened(reading.info) for wanted in self._distinct]
            for frame in reading.frames():
                for of, nodes in enumerate(chains):
                    for made in through(nodes, [frame]):
                        yield Piece(of, made.data, made.discontinuity)
            for of, nodes in enumerate(chains):
                for made in flushed(nodes):
                    yield Piece(of, made.data, made.discontinuity)
        yield reading

    def close(self) -> None:
        """Ends a file that waits for its next segment."""
        self._reader.close()


def through(nodes: list[Transform], frames: Iterable[Frame]) -> Iterator[Frame]:
    """Frames through nodes, one after the other."""
    if not nodes:
        yield from frames
        return
    first, *rest = nodes
    for frame in frames:
        yield from through(rest, first.push(frame))


def flushed(nodes: list[Transform]) -> Iterator[Frame]:
    """What is left in nodes at the end of a stream."""
    for number, node in enumerate(nodes):
        yield from through(nodes[number + 1 :], node.flush())
