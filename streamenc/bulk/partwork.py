"""One part of a set: its items read, decoded, encoded and written as a shard."""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.inputs.datainput import Span
from streamenc.bulk.items import Fault, Item, Row
from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.manifest import Finished
from streamenc.bulk.outputs.shard import Shard, publish
from streamenc.bulk.outputs.shardformats import shard_class

DATA, SCRATCH = "data", "scratch"
TELL_SECONDS = 0.25


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

    Raises OutputError where it cannot be written.
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
        self._items = 0
        # Of each item that is not behind, whether it was begun; and of those that are, how many.
        self._taken: deque[bool] = deque()
        self._behind = 0
        self._seconds = 0.0
        self._frames = [0] * len(plan.models)
        self._spent = tokenizer.spent
        self._told = (0, 0, 0.0, dict(self._spent))
        self._told_at = time.monotonic()

    def run(self, singly: bool) -> Done:
        plan, span = self._plan, self._plan.span(self._part)
        kind = shard_class(plan.job.format)
        with tempfile.TemporaryDirectory(prefix=f"{self._part:06d}-", dir=self._scratch) as folder:
            shard = kind(Path(folder), self._part, plan.models, plan.columns)
            try:
                for made in self._rows(span, singly):
                    self._behind += self._taken.popleft()
                    if isinstance(made, Fault):
                        self._faults.append(made)
                    else:
                        self._write(shard, made)
                    if time.monotonic() - self._told_at >= TELL_SECONDS:
                        self._say()
                began = time.perf_counter()
                shard.complete()
            except BaseException:
                shard.discard()
                raise
            (plan.output / DATA).mkdir(exist_ok=True)
            files = [publish(path, plan.output, f"{DATA}/{path.name}") for path in shard.paths]
            self._spent["writing"] += time.perf_counter() - began
        self._say()
        line = Finished(
            part=self._part,
            files=tuple(files),
            source=span.source,
            items=self._items,
            errors=len(self._faults),
            seconds=round(self._seconds, 6),
            frames=tuple(self._frames),
        )
        return Done(line, self._faults)

    def _rows(self, span: Span, singly: bool) -> Iterator[Row | Fault]:
        if not singly:
            yield from self._tokenizer.rows(self._items_of(span))
            return
        for item in self._items_of(span):
            yield from self._tokenizer.rows([item])

    def _items_of(self, span: Span) -> Iterator[Item | Fault]:
        items = iter(self._plan.input().items(span))
        while True:
            began = time.perf_counter()
            item = next(items, None)
            self._spent["reading"] += time.perf_counter() - began
            if item is None:
                return
            why = self._skip.get(item.key)
            if why is not None and isinstance(item, Item):
                self._taken.append(False)
                yield Fault(item.key, item.media.name, why, "MediaError")
                continue
            if isinstance(item, Item):
                self._began(item.key, self._behind)
            self._taken.append(isinstance(item, Item))
            yield item

    def _write(self, shard: Shard, row: Row) -> None:
        began = time.perf_counter()
        shard.write(row)
        self._spent["writing"] += time.perf_counter() - began
        self._items += 1
        self._seconds += row.seconds
        for at, tokens in enumerate(row.tokens):
            self._frames[at] += tokens.data.shape[1]

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
