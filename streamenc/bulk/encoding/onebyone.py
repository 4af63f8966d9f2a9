"""OneByOne: items one after the other, each decoded and encoded alone; the way on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamenc.bulk.decoding.decoders import Whole
from streamenc.bulk.decoding.mediareader import Reading
from streamenc.bulk.decoding.preparing import Preparing
from streamenc.bulk.encoding.road import Models, Road, fault_of, row_of
from streamenc.bulk.items import Fault, Item, Row, Tokens
from streamenc.errors import StreamencError


class OneByOne(Road):
    """Items alone: there is no faster one on a CPU, whose steps of many hops use all of it."""

    def __init__(self, models: Models, preparing: Preparing) -> None:
        self._models, self._preparing = models, preparing

    def rows(self, items: Iterable[Item | Fault]) -> Iterator[Row | Fault]:
        try:
            for item in items:
                yield item if isinstance(item, Fault) else self.row(item)
        finally:
            self.close()

    def close(self) -> None:
        self._preparing.close()

    def row(self, item: Item) -> Row | Fault:
        """One item, alone."""
        try:
            tokens, whole = self.encoded(item)
        except StreamencError as error:
            return fault_of(item, error)
        return row_of(item, tokens, whole)

    def encoded(self, item: Item) -> tuple[tuple[Tokens, ...], Whole]:
        """What each model makes of an item. Raises StreamencError."""
        models, of = self._models, self._preparing.of
        passes = models.passes()
        pieces = self._preparing.pieces(item)
        try:
            while True:
                with models.timed("decoding"):
                    piece = next(pieces)
                if isinstance(piece, Reading):
                    whole = Whole(piece.samples, piece.rate, tuple(piece.flags))
                    break
                with models.timed("encoding"):
                    for at, each in enumerate(passes):
                        if of[at] == piece.of:
                            with models.named(at):
                                each.push(piece.data, piece.anew)
        finally:
            pieces.close()
        tokens = []
        with models.timed("encoding"):
            for at, (each, nothing) in enumerate(zip(passes, models.nothing, strict=True)):
                with models.named(at):
                    tokens.append(each.finish(nothing))
        return tuple(tokens), whole
