"""Road: the ways that items go through the models of a job; what all of them have in common."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from streamenc.bulk.decoding.decoders import Whole
from streamenc.bulk.encoding.modelpass import ModelPass
from streamenc.bulk.items import Fault, Item, Row, Tokens
from streamenc.bulk.tokenizejob import TokenizeJob
from streamenc.codec import Codec
from streamenc.errors import StreamencError


class Models:
    """The models of a job, loaded.

    Attributes:
        nothing: What each gives of no sound, in its shape and type.
        spent: Seconds so far, by what they were spent on: "reading", "decoding", "encoding".
    """

    def __init__(
        self, job: TokenizeJob, codecs: Sequence[Codec], nothing: Sequence[np.ndarray]
    ) -> None:
        self.job, self.codecs, self.nothing = job, codecs, nothing
        self.spent: defaultdict[str, float] = defaultdict(float)

    def __len__(self) -> int:
        return len(self.codecs)

    def passes(self) -> list[ModelPass]:
        """One item through each of them, alone."""
        return [self.alone(at) for at in range(len(self))]

    def alone(self, at: int) -> ModelPass:
        """One item through one of them, alone."""
        return ModelPass(self.codecs[at], self.job.models[at], self.job.layout)

    def told(self, at: int, error: StreamencError) -> StreamencError:
        """What one of them does not take, with its name where there are several."""
        if len(self) == 1:
            return error
        return type(error)(f"{self.codecs[at].public_name}: {error}")

    @contextmanager
    def named(self, at: int) -> Iterator[None]:
        """Errors within it are those of one model; see `told`."""
        try:
            yield
        except StreamencError as error:
            raise self.told(at, error) from error

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.spent[what] += time.perf_counter() - began


class Road(ABC):
    """How items go through the models."""

    @abstractmethod
    def rows(self, items: Iterable[Item | Fault]) -> Iterator[Row | Fault]:
        """What becomes of items, in their order; a Fault for one that is bad."""

    @abstractmethod
    def close(self) -> None:
        """Ends what it started; may be called twice."""


def row_of(item: Item, tokens: tuple[Tokens, ...], whole: Whole) -> Row:
    """The row of an item that is through."""
    flags = (*item.flags, *whole.flags)
    if not all(made.data.shape[1] for made in tokens):
        flags = (*flags, "empty")
    return Row(item.key, tokens, whole.n_samples, whole.rate, flags, item.columns)


def fault_of(item: Item, error: StreamencError) -> Fault:
    """An item that is none."""
    return Fault(item.key, item.media.name, str(error), type(error).__name__)
