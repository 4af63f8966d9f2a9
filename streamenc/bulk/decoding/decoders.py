"""Decoders: many items read at once, each as far as somebody asks; OwnDecoder: in this process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

import msgspec

from streamenc.bulk.decoding.mediareader import Reading
from streamenc.bulk.decoding.preparing import Piece, Preparing
from streamenc.bulk.items import Item
from streamenc.errors import StreamencError

# What comes at once of an item is about so much: 4 s of 16 kHz, or an image.
GIVEN_BYTES = 1 << 18


class Whole(msgspec.Struct, frozen=True, array_like=True):
    """What is known of an item that was read to its end; see Row."""

    n_samples: int
    rate: float
    flags: tuple[str, ...]


class Given(NamedTuple):
    """Some of an item, or the last of it.

    Attributes:
        ticket: Which item.
        pieces: In the order in which they were made.
        whole: None where more can be asked for.
    """

    ticket: int
    pieces: list[Piece]
    whole: Whole | None


class Broken(NamedTuple):
    """An item that cannot be read; see Fault."""

    ticket: int
    reason: str
    error: str


Answer: TypeAlias = "Given | Broken"


class Decoders(ABC):
    """Reads many items at once. Whoever asks for more of an item gets one answer."""

    @abstractmethod
    def start(self, ticket: int, item: Item) -> None:
        """Opens an item, and asks for its beginning.

        ticket  A number that no open item has.
        """

    @abstractmethod
    def ask(self, ticket: int) -> None:
        """Asks for more of an item, of which all that was asked for has come."""

    @abstractmethod
    def drop(self, ticket: int) -> None:
        """Closes an item of which nothing is asked for any more; one that has ended is closed."""

    @abstractmethod
    def answers(self, wait: bool) -> list[Answer]:
        """What has come. With `wait`, at least one where something was asked for."""

    @abstractmethod
    def close(self) -> None:
        """Ends what it started; may be called twice."""


class OpenItem:
    """An item that is read piece by piece."""

    def __init__(self, preparing: Preparing, item: Item) -> None:
        self._pieces = preparing.pieces(item)

    def more(self, most_bytes: int = GIVEN_BYTES) -> tuple[list[Piece], Whole | None]:
        """Some pieces, and what is known of the item behind the last one. Raises StreamencError."""
        pieces: list[Piece] = []
        size = 0
        for piece in self._pieces:
            if isinstance(piece, Reading):
                return pieces, Whole(piece.samples, piece.rate, tuple(piece.flags))
            pieces.append(piece)
            size += piece.data.nbytes
            if size >= most_bytes:
                break
        return pieces, None

    def close(self) -> None:
        self._pieces.close()


class OwnDecoder(Decoders):
    """Decodes in this process, when an answer is waited for."""

    def __init__(self, preparing: Preparing) -> None:
        self._preparing = preparing
        self._open: dict[int, OpenItem] = {}
        self._asked: deque[int] = deque()

    def start(self, ticket: int, item: Item) -> None:
        self._open[ticket] = OpenItem(self._preparing, item)
        self.ask(ticket)

    def ask(self, ticket: int) -> None:
        self._asked.append(ticket)

    def drop(self, ticket: int) -> None:
        if ticket in self._asked:
            self._asked.remove(ticket)
        self._open.pop(ticket).close()

    def answers(self, wait: bool) -> list[Answer]:
        return list(self._made())

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()
        self._asked.clear()
        self._preparing.close()

    def _made(self) -> Iterator[Answer]:
        while self._asked:
            ticket = self._asked.popleft()
            try:
                pieces, whole = self._open[ticket].more()
            except StreamencError as error:
                self.drop(ticket)
                yield Broken(ticket, str(error), type(error).__name__)
                continue
            if whole is not None:
                self.drop(ticket)
            yield Given(ticket, pieces, whole)
