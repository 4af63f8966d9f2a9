"""One part of a set: its items read, decoded, encoded and written as a shard."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from streamenc.bulk.inputs.datainput import Span
from streamenc.bulk.items import Fault, Item, Row
from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.manifest import Finished
from streamenc.bulk.outputs.shard import Shard, Written, publish
from streamenc.bulk.outputs.shardformats import shard_class
from streamenc.errors import MediaError, OutputError, StreamencError
from streamenc.io.files.output import output_error

if TYPE_CHECKING:
    from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.encoding.verifier import DIFFERS

DATA = "data"
TELL_SECONDS = 0.25
MOST_LETTERS = 1000  # of a reason


class Progress(msgspec.Struct, frozen=True, tag=True):
    """What was done of a part since it was told last.

    Attributes:
        items, errors: Rows that were written, and items that are none.
        seconds: Of sound or video.
        spent: Seconds of the process, by what they were spent on: "reading", "decoding",
            "encoding", "writing".
    """

    part: int
    items: int
    errors: int
    seconds: float
    spent: dict[str, float]


class Done(msgspec.Struct, frozen=True, tag=True):
    """A part that is written; see Manifest.add."""

    line: Finished
    faults: list[Fault]


def _nobody(key: str, behind: int) -> None:
    """Whom nobody asks."""


def do_part(
    plan: JobPlan,
    part: int,
    tokenizer: Tokenizer,
    scratch: Path,
    tell: Callable[[Progress], None],
    *,
    began: Callable[[str, int], None] = _nobody,
    skip: Mapping[str, str] = MappingProxyType({}),
    singly: bool = False,
) -> Done:
    """Does a part, whose shard then has its name.

    Args:
        scratch: A folder on the output's file system, for what is not whole yet.
        tell: Called now and then.
        began: Called before an item is opened, with its key and how many of those for which it was
            called are behind: the others are in hand.
        skip: Keys of items that are not to be tried, and why: they are faults.
        singly: Whether items are taken one by one, so that one is in hand.

    Raises OutputError where it cannot be written, and MediaError where the input cannot be read.
    """
    return _Work(plan, part, tokenizer, scratch, tell, began, skip).run(singly)


class _Work:
    def __init__(
        self,
        plan: JobPlan,
        part: int,
        tokenizer: Tokenizer,
        scratch: Path,
        tell: Callable[[Progress], None],
        began: Callable[[str, int], None],
        skip: Mapping[str, str],
    ) -> None:
        self._plan, self._part, self._tokenizer = plan, part, tokenizer
        self._scratch, self._tell, self._began, self._skip = scratch, tell, began, skip
        self._faults: list[Fault] = []
        self._items = self._verified = self._differing = 0
        # Of each item that is not behind, whether it was begun; and of those that are, how many.
        self._taken: deque[bool] = deque()
        self._behind = 0
        self._seconds = 0.0
        self._frames = [0] * len(plan.models)
        self._spent = tokenizer.spent
        self._told = (0, 0, 0.0, dict(self._spent))
        self._told_at = time.monotonic()

    def run(self, singly: bool) -> Done:
        span = self._plan.span(self._part)
        prefix = f"{self._part:06d}-"
        try:
            folder = tempfile.TemporaryDirectory(prefix=prefix, dir=self._scratch)
            (self._plan.output / DATA).mkdir(exist_ok=True)
        except OSError as error:
            raise output_error(str(self._plan.output), error) from error
        with folder:
            files = self._shard(Path(folder.name), self._rows(span, singly))
        self._say()
        line = Finished(
            part=self._part,
            files=tuple(files),
            source=span.source,
            items=self._items,
            errors=len(self._faults),
            seconds=round(self._seconds, 6),
            frames=tuple(self._frames),
            verified=self._verified,
            differing=self._differing,
        )
        return Done(line, self._faults)

    def _shard(self, folder: Path, rows: Iterator[Row | Fault]) -> list[Written]:
        """The files of the part, which then have their names."""
        plan = self._plan
        kind = shard_class(plan.job.format)
        shard = kind(folder, self._part, plan.models, plan.columns)
        try:
            for made in rows:
                self._behind += self._taken.popleft()
                if isinstance(made, Fault):
                    self._faults.append(_writable(made))
                else:
                    self._write(shard, made)
                if time.monotonic() - self._told_at >= TELL_SECONDS:
                    self._say()
            with self._timed("writing"):
                shard.complete()
        except BaseException:  # whatever it is, no half of a shard stays; passed on
            shard.discard()
            raise
        with self._timed("writing"):
            return [publish(path, plan.output, f"{DATA}/{path.name}") for path in shard.paths]

    def _rows(self, span: Span, singly: bool) -> Iterator[Row | Fault]:
        if not singly:
            yield from self._tokenizer.rows(self._items_of(span))
            return
        for item in self._items_of(span):
            yield from self._tokenizer.rows([item])

    def _items_of(self, span: Span) -> Iterator[Item | Fault]:
        for item in self._read(span):
            fault = item if isinstance(item, Fault) else self._why_not(item)
            self._taken.append(fault is None)
            if fault is None:
                self._began(item.key, self._behind)
            yield fault or item

    def _read(self, span: Span) -> Iterator[Item | Fault]:
        """What the input has in a span; where it is broken in the middle, that ends it."""
        items = iter(self._plan.input().items(span))
        while True:
            try:
                with self._timed("reading"):
                    item = next(items, None)
            except StreamencError as error:
                reason = f"{error}; what comes behind it was not read"
                yield Fault(
                    f"{span.source}:{span.start}", span.source, reason, type(error).__name__
                )
                return
            except OSError as error:  # it may be there tomorrow
                raise MediaError(
                    f"cannot read {span.source!r}: {error.strerror or error}; see to it, and start "
                    "again: what is finished stays"
                ) from error
            if item is None:
                return
            yield item

    def _why_not(self, item: Item) -> Fault | None:
        """Why an item is not even tried."""
        why = self._skip.get(item.key)
        if why is not None:
            return Fault(item.key, item.media.name, why, "MediaError")
        if not item.key.isascii() and _text(item.key) != item.key:
            why = "its name is no UTF-8, and could not be told from another's: rename it"
            return Fault(item.key, item.media.name, why)
        return None

    def _write(self, shard: Shard, row: Row) -> None:
        with self._timed("writing"):
            shard.write(row)
        self._items += 1
        self._verified += row.verified
        self._differing += row.verified and DIFFERS in row.flags
        self._seconds += row.seconds
        for at, tokens in enumerate(row.tokens):
            self._frames[at] += tokens.data.shape[1]

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._spent[what] += time.perf_counter() - began

    def _say(self) -> None:
        items, errors, seconds, spent = self._told
        now = (self._items, len(self._faults), self._seconds, dict(self._spent))
        self._tell(
            Progress(
                self._part,
                now[0] - items,
                now[1] - errors,
                now[2] - seconds,
                {what: value - spent.get(what, 0.0) for what, value in now[3].items()},
            )
        )
        self._told, self._told_at = now, time.monotonic()


def _writable(fault: Fault) -> Fault:
    """A fault as text that JSON holds, and of a length that is read.

    Raises OutputError where it is none of the item's: the disk is full of copies.
    """
    if fault.error == OutputError.__name__:
        raise OutputError(fault.reason)
    reason = fault.reason
    if len(reason) > MOST_LETTERS:
        reason = f"{reason[:MOST_LETTERS]}..."
    return Fault(_text(fault.key), _text(fault.source), _text(reason), fault.error)


def _text(name: str) -> str:
    """A name that may be bytes of no encoding, as the system has them, in letters."""
    return name.encode(errors="backslashreplace").decode()
