"""PartActor: a worker on some machine of a cluster, with the models of a job, which does parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import ray
import torch

from streamenc import __version__
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.partwork import Progress, do_part
from streamenc.bulk.tokenizejob import ModelFacts
from streamenc.bulk.workers.footprint import peak_bytes
from streamenc.bulk.workers.stop import Abandoned
from streamenc.errors import StreamencError, UsageError

TELL_SECONDS = 2.0
ROWS = pa.schema([("part", pa.int64()), ("done", pa.binary()), ("error", pa.string())])


@dataclass(frozen=True)
class PartSetup:
    """What a worker needs to know.

    Attributes:
        version: Of streamenc, where the run is.
        output, scratch: Folders that all machines see.
        token: The name of a file in `scratch`, by which a worker knows that it sees the same.
        needed: Folders or files of the input, which it has to see too.
        device: As `streamenc.load` takes it.
        decoders: See Tokenizer.
    """

    version: str
    output: str
    scratch: str
    token: str
    needed: tuple[str, ...]
    device: str
    decoders: int


def one_by_one(batch: pa.Table) -> Iterator[pa.Table]:
    """Rows as tables of their own: a worker is given a part when it has done the last one."""
    for number in range(batch.num_rows):
        yield batch.slice(number, 1)


class PartActor:
    """Does one part after the other, and gives a row for each: what is written of it, or an error.

    What it cannot be made with is an error of each of its rows: Ray would make it again and again.

    Args:
        board: The actor that is a PartBoard.
    """

    def __init__(self, setup: PartSetup, board: Any) -> None:
        self._setup, self._board = setup, board
        self._error = ""
        try:
            self._prepare(setup)
        except StreamencError as error:
            self._error = _named(error)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (part,) = batch.column(0).to_pylist()
        done, error = b"", self._error
        if not error:
            try:
                done = self._do(part)
            except Abandoned:
                ray.get(self._board.done.remote(part))
            except StreamencError as raised:
                error = _named(raised)
        return pa.table({"part": [part], "done": [done], "error": [error]}, ROWS)

    def _prepare(self, setup: PartSetup) -> None:
        node = ray.util.get_node_ip_address()
        if setup.version != __version__:
            raise UsageError(
                f"the machine {node} has streamenc {__version__}, and the run {setup.version}; "
                "install the same on all"
            )
        if not (Path(setup.scratch) / setup.token).exists():
            raise UsageError(
                f"the machine {node} does not see the folder {setup.output!r} of the run; OUTPUT "
                "has to be a folder that all machines share, under the same name"
            )
        for path in setup.needed:
            if not Path(path).exists():
                raise UsageError(
                    f"the machine {node} does not see {path!r}, where the input is; it has to be "
                    "in a folder that all machines share, or in a store (s3://...)"
                )
        if setup.device == "cpu":
            torch.set_num_threads(1)  # how sums are rounded depends on it
        self._plan = JobPlan(Path(setup.output))
        try:
            self._tokenizer = Tokenizer(
                self._plan.job, Path(setup.scratch), setup.device, decoders=setup.decoders
            )
        except StreamencError as error:
            raise UsageError(
                f"the machine {node} cannot load the models: {error}. Paths of weights, and what "
                "the Hub has, are looked for on each machine"
            ) from error
        differing = _differing(self._plan.models, self._tokenizer.facts)
        if differing:
            raise UsageError(
                f"the machine {node} has other weights of {differing} than the run; give all "
                "machines the same"
            )

    def _do(self, part: int) -> bytes:
        board = self._board
        order = ray.get(board.begin.remote(part))
        if order.stopped:
            return b""
        if order.given_up:
            raise StreamencError(order.given_up)
        telling = _Telling(board, part)

        def began(key: str, behind: int) -> None:
            if order.singly:
                telling.heed(ray.get(board.at.remote(part, key)))
            telling.look()

        made = do_part(
            self._plan,
            part,
            self._tokenizer,
            Path(self._setup.scratch),
            telling.told,
            began=began,
            skip=order.skip,
            singly=order.singly,
        )
        telling.end()
        return msgspec.json.encode(made)


class _Telling:
    """Tells the board how far a part is, now and then, and hears whether to break off."""

    def __init__(self, board: Any, part: int) -> None:
        self._board, self._part = board, part
        self._sum = Progress(part, 0, 0, 0.0, {})
        self._told_at = time.monotonic()
        self._answers: list[Any] = []

    def told(self, progress: Progress) -> None:
        self._sum = _added(self._sum, progress)
        self.look()

    def look(self) -> None:
        """Raises Abandoned."""
        ready, self._answers = ray.wait(self._answers, timeout=0) if self._answers else ([], [])
        for answer in ready:
            self.heed(ray.get(answer))
        if not self._answers and time.monotonic() - self._told_at >= TELL_SECONDS:
            self._answers.append(self._say())

    def heed(self, stop: int) -> None:
        """Raises Abandoned."""
        if stop > 1:
            raise Abandoned

    def end(self) -> None:
        """The board has all when this returns."""
        ray.get([self._say(), self._board.done.remote(self._part)])

    def _say(self) -> Any:
        told, self._sum = self._sum, Progress(self._part, 0, 0, 0.0, {})
        self._told_at = time.monotonic()
        return self._board.told.remote(told, peak_bytes())


def _added(one: Progress, other: Progress) -> Progress:
    spent = {
        what: one.spent.get(what, 0.0) + other.spent.get(what, 0.0)
        for what in {**one.spent, **other.spent}
    }
    return Progress(
        one.part,
        one.items + other.items,
        one.errors + other.errors,
        one.seconds + other.seconds,
        spent,
    )


def _differing(there: tuple[ModelFacts, ...], here: tuple[ModelFacts, ...]) -> str:
    pairs = zip(there, here, strict=True)
    return ", ".join(a.name for a, b in pairs if a.fingerprint != b.fingerprint)


def _named(error: StreamencError) -> str:
    return f"{type(error).__name__}: {error}"
