"""`tokenize`: a data set to a set of tokens, gone on with where an earlier run ended."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import msgspec

from streamenc.bulk.datacard import write_card
from streamenc.bulk.inputs.looks import look
from streamenc.bulk.jobplan import FOLDER, JobPlan, make_plan
from streamenc.bulk.manifest import Manifest
from streamenc.bulk.outputfolder import check_place, scratch_folder
from streamenc.bulk.partwork import Done, Progress
from streamenc.bulk.runfigures import Reasons, RunFigures, RunTally
from streamenc.bulk.tokenizejob import ModelFacts, TokenizeJob
from streamenc.bulk.workers.footprint import cores
from streamenc.bulk.workers.stop import Abandoned, Stop
from streamenc.bulk.workers.workforce import Workforce
from streamenc.bulk.workers.worklistener import Listener
from streamenc.errors import InputError

TELL_SECONDS = 0.25
ITEM_TIMEOUT_SECONDS = 600.0
RATE_ITEMS = 100  # before which a rate of errors says nothing


def tokenize(
    job: TokenizeJob,
    output: str | os.PathLike[str],
    *,
    share: tuple[int, int] = (0, 1),
    workers: int | None = None,
    devices: Sequence[str] = ("cpu",),
    max_error_rate: float | None = None,
    item_timeout_seconds: float | None = ITEM_TIMEOUT_SECONDS,
    tell: Callable[[RunFigures], None] | None = None,
    stop: Stop | None = None,
) -> RunFigures:
    """Does what is left of a job.

    Args:
        job: What is asked for.
        output: The folder of the set.
        share: (i, n): every n-th part, from the i-th on; so n machines share a set.
        workers: Processes that do parts, each with the models of its own; None for one on each
            core that this process may use, 0 for none but this one. On other devices than a CPU,
            one for each device.
        devices: As `streamenc.load` takes them.
        max_error_rate: The share of items that may be errors, 0 to 1; looked at from 100 items on,
            and at the end. None for all.
        item_timeout_seconds: After so long without anything coming of an item, its worker is ended,
            and it is an error at the second time. None for never.
        tell: Told how far it is, at most 4 times a second.
        stop: By which it is asked to end before all is done.

    Returns:
        The figures at its end.

    Raises:
        UsageError: Where the output holds another job or is written by another run, or the input
            holds nothing.
        OutputError: Where it cannot be written.
        InputError: Where more items are errors than may be. What is finished stays.
    """
    stop = stop or Stop()

    def hire(job: TokenizeJob, scratch: Path, left: int) -> Crew:
        each, decoders = _workers(workers, devices)
        if not each:  # the only one for which this process needs torch
            from streamenc.bulk.workers.solo import Solo

            return Solo(job, scratch, devices[0], stop, decoders)
        return Workforce(
            job,
            Path(output),
            scratch,
            each[: max(1, left)],
            stop,
            decoders=decoders,
            item_timeout_seconds=item_timeout_seconds,
        )

    return tokenize_by(
        hire, job, Path(output), share=share, max_error_rate=max_error_rate, tell=tell
    )


class Crew(Protocol):
    """Those who do the parts of a run."""

    @property
    def size(self) -> int:
        """How many do parts at once."""

    def facts(self, listener: Listener) -> tuple[ModelFacts, ...]:
        """What the models are. Raises Abandoned where the run is asked to stop before that."""

    def work(self, plan: JobPlan, parts: Sequence[int], listener: Listener) -> None:
        """Does parts, until all are done or the run is asked to stop."""

    def close(self) -> None:
        """Ends what it started."""


def tokenize_by(
    hire: Callable[[TokenizeJob, Path, int], Crew],
    job: TokenizeJob,
    folder: Path,
    *,
    share: tuple[int, int] = (0, 1),
    max_error_rate: float | None = None,
    tell: Callable[[RunFigures], None] | None = None,
) -> RunFigures:
    """As `tokenize`, by whom `hire` gives.

    Args:
        hire: Called with the job, a folder of this run alone, and how many parts there are at most.
        folder: Of the set.
    """
    if not job.input_kind:
        job = msgspec.structs.replace(job, input_kind=look(job.input))
    check_place(folder, job.input)
    with closing(Manifest(folder, share)) as manifest, scratch_folder(folder, share) as scratch:
        tally = RunTally(1)
        run = _Run(manifest, tally, max_error_rate, tell or _nobody)
        run.tell_now()
        with closing(hire(job, scratch, _left(folder, share, manifest))) as crew:
            tally.workers = crew.size
            try:
                facts = crew.facts(run)
            except Abandoned:
                return run.end(stopped=True)
            run.stage("planning")
            plan = make_plan(folder, job, facts)
            try:
                crew.work(plan, run.begin(plan, share), run)
            finally:
                write_card(folder)
        return run.end()


def _workers(workers: int | None, devices: Sequence[str]) -> tuple[list[str], int | None]:
    """The device of each worker, and the decoders of each; no device where there is no worker."""
    if workers == 0:
        return [], 0
    if list(devices) == ["cpu"]:
        return ["cpu"] * (cores() if workers is None else workers), 0
    decoders = cores() - len(devices) if workers is None else workers
    return list(devices), max(1, decoders // len(devices))


def _left(folder: Path, share: tuple[int, int], manifest: Manifest) -> int:
    """How many parts there are to do; many where there is no plan yet."""
    if not (folder / FOLDER).exists():
        return sys.maxsize
    finished = manifest.elsewhere | manifest.finished
    ours = range(share[0], JobPlan(folder).parts, share[1])
    return sum(part not in finished for part in ours)


def _nobody(figures: RunFigures) -> None:
    """Whom nobody asks."""


class _Run:
    """Writes down what is finished, and tells how far it is."""

    def __init__(
        self,
        manifest: Manifest,
        tally: RunTally,
        max_error_rate: float | None,
        tell: Callable[[RunFigures], None],
    ) -> None:
        self._manifest, self._tally = manifest, tally
        self._most, self._tell = max_error_rate, tell
        self._told_at = -TELL_SECONDS

    def stage(self, stage: str) -> None:
        self._tally.stage = stage
        self.tell_now()

    def begin(self, plan: JobPlan, share: tuple[int, int]) -> list[int]:
        """Gives the parts that are left."""
        finished = self._manifest.elsewhere | self._manifest.finished
        ours = range(share[0], plan.parts, share[1])
        counts = [plan.span(part).items for part in ours]
        self._tally.work(
            len(ours),
            sum(counts) if all(counts) else 0,
            [line for part, line in finished.items() if part in ours],
        )
        self.tell_now()
        return [part for part in ours if part not in finished]

    def end(self, stopped: bool = False) -> RunFigures:
        """Looks at the errors once more."""
        self._check_errors(least=1)
        self._tally.stage = "done"
        self._tally.stopped = stopped or self._tally.left > 0
        return self.tell_now()

    def told(self, progress: Progress) -> None:
        self._tally.told(progress)
        self._check_errors(RATE_ITEMS)

    def finished(self, done: Done) -> None:
        self._manifest.add(done.line, done.faults)
        self._tally.finish(done)
        self._check_errors(RATE_ITEMS)
        self.look()

    def lost(self, part: int) -> None:
        self._tally.lost(part)

    def memory(self, peak_bytes: int) -> None:
        self._tally.memory(peak_bytes)

    def look(self) -> None:
        if time.monotonic() - self._told_at >= TELL_SECONDS:
            self.tell_now()

    def tell_now(self) -> RunFigures:
        self._told_at = time.monotonic()
        figures = self._tally.figures()
        self._tell(figures)
        return figures

    def _check_errors(self, least: int) -> None:
        if self._most is None:
            return
        errors, items = self._tally.errors, self._tally.taken
        if items >= least and errors > self._most * items:
            reasons = Reasons()
            for error in self._manifest.errors():
                reasons.add(error)
            said = ", ".join(
                f"{reason} ({count} times)" for reason, count in reasons.commonest().items()
            )
            raise InputError(
                f"{errors} of {items} items are errors, more than --max-error-rate "
                f"{self._most:g}{': ' if said else ''}{said}. Each is in "
                f"{str(self._manifest.errors_path)!r}; what is finished stays: give a higher rate "
                "to go on with it"
            )
