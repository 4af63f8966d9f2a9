"""One part of a set: its items read, decoded, encoded and written as a shard."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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


class Progress(msgspec.Struct, frozen=True):
    """What was done of a part since it was told last.

    Attributes:
        key: The item that comes next, by which is known what a process died of.
        seconds: Of sound or video.
        spent: Seconds of the process, by what they were spent on: "reading", "decoding",
            "encoding", "writing".
    """

    part: int
    key: str
    items: int
    errors: int
    seconds: float
    spent: dict[str, float]


class Done(msgspec.Struct, frozen=True):
    """A part that is written; see Manifest.add."""

    line: Finished
    faults: list[Fault]


def do_part(
    plan: JobPlan,
    part: int,
    tokenizer: Tokenizer,
    tell: Callable[[Progress], None],
    skip: frozenset[str] = frozenset(),
) -> Done:
    """Does a part, whose shard then has its name.

    Args:
        tell: Called now and then.
        skip: Keys of items that ended the process that took them: they are faults.

    Raises OutputError where it cannot be written.
    """
    work = _Work(plan, part, tokenizer, tell, skip)
    return work.run()


class _Work:
    def __init__(
        self,
        plan: JobPlan,
        part: int,
        tokenizer: Tokenizer,
        tell: Callable[[Progress], None],
        skip: frozenset[str],
    ) -> None:
        self._plan, self._part, self._tokenizer = plan, part, tokenizer
        self._tell, self._skip = tell, skip
        self._faults: list[Fault] = []
        self._items = 0
        self._seconds = 0.0
        self._frames = [0] * len(plan.models)
        self._spent = tokenizer.spent
        self._told = (0, 0, 0.0, dict(self._spent))
        self._told_at = time.monotonic()

    def run(self) -> Done:
        plan, span = self._plan, self._plan.span(self._part)
        scratch = plan.output / SCRATCH
        scratch.mkdir(exist_ok=True)
        kind = shard_class(plan.job.format)
        with tempfile.TemporaryDirectory(prefix=f"{self._part:06d}-", dir=scratch) as folder:
            shard = kind(Path(folder), self._part, plan.models, plan.columns)
            try:
                for made in self._tokenizer.rows(self._items_of(span)):
                    if isinstance(made, Fault):
                        self._faults.append(made)
                    else:
                        self._write(shard, made)
                    if time.monotonic() - self._told_at >= TELL_SECONDS:
                        self._say("")
                began = time.perf_counter()
                shard.complete()
            except BaseException:
                shard.discard()
                raise
            (plan.output / DATA).mkdir(exist_ok=True)
            files = [publish(path, plan.output, f"{DATA}/{path.name}") for path in shard.paths]
            self._spent["writing"] += time.perf_counter() - began
        self._say("")
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

    def _items_of(self, span: Span) -> Iterator[Item | Fault]:
        items = iter(self._plan.input().items(span))
        while True:
            began = time.perf_counter()
            item = next(items, None)
            self._spent["reading"] += time.perf_counter() - began
            if item is None:
                return
            if item.key in self._skip and isinstance(item, Item):
                reason = "the process that took it ended at once, twice"
                yield Fault(item.key, item.media.name, reason, "MediaError")
            else:
                yield item

    def _write(self, shard: Shard, row: Row) -> None:
        began = time.perf_counter()
        shard.write(row)
        self._spent["writing"] += time.perf_counter() - began
        self._items += 1
        self._seconds += row.seconds
        for at, tokens in enumerate(row.tokens):
            self._frames[at] += tokens.data.shape[1]

    def _say(self, key: str) -> None:
        items, errors, seconds, spent = self._told
        now = (self._items, len(self._faults), self._seconds, dict(self._spent))
        self._tell(
            Progress(
                self._part,
                key,
                now[0] - items,
                now[1] - errors,
                now[2] - seconds,
                {what: value - spent.get(what, 0.0) for what, value in now[3].items()},
            )
        )
        self._told, self._told_at = now, time.monotonic()
