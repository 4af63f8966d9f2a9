"""ManyItems: many items on their way at once, whose rows come out in order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

from streamenc.bulk.decoding.decoders import Decoders, Given, Whole
from streamenc.bulk.encoding.modellanes import LanePass, ModelLanes
from streamenc.bulk.encoding.modelpass import ModelPass
from streamenc.bulk.encoding.road import Models, Road, fault_of, row_of
from streamenc.bulk.items import Fault, Item, Row
from streamenc.errors import StreamencError

# Of rows that are done and wait for one before them: with more, no further item is begun.
WAITING_ROWS, WAITING_BYTES = 16384, 1 << 28
# The next step is made once so much of what is under way can take it, or nothing more comes.
ENOUGH = 0.75


class ManyItems(Road):
    """As many items at once as there are lanes; where one ends, the next one begins.

    Models that do not go in lanes take each item alone, as its sound comes.

    Args:
        of: Which preparation's pieces each model takes; see Preparing.
        lanes: For each model, or None for one that takes items alone.
        count: How many items are on their way at most.
    """

    def __init__(
        self,
        models: Models,
        of: list[int],
        decoders: Decoders,
        lanes: list[ModelLanes | None],
        count: int,
    ) -> None:
        self._models, self._of, self._decoders = models, of, decoders
        self._lanes, self._count = lanes, count
        self._tickets = itertools.count()
        self._under_way: dict[int, _Entry] = {}
        self._waiting_rows = self._waiting_bytes = 0
        self._idle = True  # whether there was nothing to encode

    def rows(self, items: Iterable[Item | Fault]) -> Iterator[Row | Fault]:
        source = iter(items)
        order: deque[_Entry | Fault] = deque()
        more = True
        try:
            while True:
                while more and self._has_room():
                    item = next(source, None)
                    if item is None:
                        more = False
                    elif isinstance(item, Fault):
                        self._waiting_rows += 1
                        order.append(item)
                    else:
                        order.append(self._entered(item))
                while order and (made := _result(order[0])) is not None:
                    self._waiting_bytes -= _bytes_of(made)
                    self._waiting_rows -= 1
                    order.popleft()
                    yield made
                if not order and not more:
                    return
                if self._under_way:
                    self._receive()
                    self._encode()
        finally:
            for entry in list(self._under_way.values()):
                self._end(entry, close=entry.whole is None)

    def close(self) -> None:
        self._decoders.close()

    def _has_room(self) -> bool:
        return (
            len(self._under_way) < self._count
            and self._waiting_rows < WAITING_ROWS
            and self._waiting_bytes < WAITING_BYTES
        )

    def _entered(self, item: Item) -> _Entry:
        entry = _Entry(next(self._tickets), item)
        self._under_way[entry.ticket] = entry
        entry.passes = [
            self._models.alone(at) if lanes is None else lanes.new_pass()
            for at, lanes in enumerate(self._lanes)
        ]
        entry.asked, entry.whole = True, None
        self._decoders.start(entry.ticket, item)
        return entry

    def _receive(self) -> None:
        """Takes what was decoded, and waits for it where too little is ready."""
        wanted = sum(entry.asked for entry in self._under_way.values())
        wait = self._idle or wanted > (1 - ENOUGH) * len(self._under_way)
        with self._models.timed("decoding"):
            answers = self._decoders.answers(wait)
        with self._models.timed("encoding"):
            for answer in answers:
                entry = self._under_way.get(answer.ticket)
                if entry is None:
                    continue  # it failed meanwhile
                if isinstance(answer, Given):
                    self._take(entry, answer)
                else:
                    item = entry.item
                    fault = Fault(item.key, item.media.name, answer.reason, answer.error)
                    self._done(entry, fault)

    def _take(self, entry: _Entry, given: Given) -> None:
        entry.asked, entry.whole = False, given.whole
        try:
            for at, each in enumerate(entry.passes):
                with self._models.named(at):
                    for piece in given.pieces:
                        if piece.of == self._of[at]:
                            each.push(piece.data, piece.anew)
                    if given.whole is not None:
                        each.end()
        except StreamencError as error:
            self._done(entry, fault_of(entry.item, error), close=given.whole is None)

    def _encode(self) -> None:
        self._idle = True
        with self._models.timed("encoding"):
            for at, lanes in enumerate(self._lanes):
                if lanes is not None and self._run(at, lanes):
                    self._idle = False
            for entry in list(self._under_way.values()):
                if entry.through:
                    self._idle = False
                    self._finish(entry)
                elif entry.hungry:
                    entry.asked = True
                    self._decoders.ask(entry.ticket)

    def _run(self, at: int, lanes: ModelLanes) -> bool:
        """Whether one model had anything to do."""
        entries = list(self._under_way.values())
        passes = [entry.passes[at] for entry in entries]
        did = lanes.run([each for each in passes if isinstance(each, LanePass)])
        for entry, each in zip(entries, passes, strict=True):
            if each.error is not None:
                fault = fault_of(entry.item, self._models.told(at, each.error))
                self._done(entry, fault, close=entry.whole is None)
        return did

    def _finish(self, entry: _Entry) -> None:
        assert entry.whole is not None
        try:
            tokens = []
            for at, (each, nothing) in enumerate(
                zip(entry.passes, self._models.nothing, strict=True)
            ):
                with self._models.named(at):
                    tokens.append(each.finish(nothing))
        except StreamencError as error:
            self._done(entry, fault_of(entry.item, error))
            return
        self._done(entry, row_of(entry.item, tuple(tokens), entry.whole))

    def _done(self, entry: _Entry, result: Row | Fault, close: bool = False) -> None:
        self._end(entry, close)
        entry.result = result
        self._waiting_rows += 1
        self._waiting_bytes += _bytes_of(result)

    def _end(self, entry: _Entry, close: bool) -> None:
        del self._under_way[entry.ticket]
        self._leave(entry)
        entry.passes = []
        if close:
            self._decoders.drop(entry.ticket)

    def _leave(self, entry: _Entry) -> None:
        for each, lanes in zip(entry.passes, self._lanes, strict=True):
            if lanes is not None and isinstance(each, LanePass):
                lanes.drop(each)


class _Entry:
    """An item, from when it is begun until its row is given.

    ticket  Its number.
    asked   Whether more of it is to come.
    whole   What is known of it, once it was read to its end.
    """

    def __init__(self, ticket: int, item: Item) -> None:
        self.ticket, self.item = ticket, item
        self.passes: list[LanePass | ModelPass] = []
        self.asked = False
        self.whole: Whole | None = None
        self.result: Row | Fault | None = None

    @property
    def through(self) -> bool:
        """Whether all of it is encoded, but for the ends of what takes it alone."""
        return self.whole is not None and all(each.done for each in self.passes)

    @property
    def hungry(self) -> bool:
        if self.asked or self.whole is not None:
            return False
        return any(each.hungry for each in self.passes)


def _result(entry: _Entry | Fault) -> Row | Fault | None:
    return entry if isinstance(entry, Fault) else entry.result


def _bytes_of(made: Row | Fault) -> int:
    return sum(tokens.data.nbytes for tokens in made.tokens) if isinstance(made, Row) else 0
