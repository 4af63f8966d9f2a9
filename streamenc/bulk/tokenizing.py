"""`tokenize`: a data set to a set of tokens, gone on with where an earlier run ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import msgspec

from streamenc.bulk.inputs.looks import look
from streamenc.bulk.jobplan import JobPlan, make_plan
from streamenc.bulk.manifest import Manifest
from streamenc.bulk.partwork import SCRATCH, Done, Progress
from streamenc.bulk.runfigures import RunFigures, RunTally
from streamenc.bulk.tokenizejob import TokenizeJob
from streamenc.bulk.workers.solo import Solo
from streamenc.bulk.workers.stop import Stop
from streamenc.errors import InputError
from streamenc.io.files.output import output_error

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
    folder = Path(output)
    scratch = folder / SCRATCH
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(str(folder), error) from error
    if not job.input_kind:
        job = msgspec.structs.replace(job, input_kind=look(job.input))
    with closing(Manifest(folder, share)) as manifest:
        run = _Run(manifest, RunTally(1), max_error_rate, tell or _nobody)
        run.tell_now()
        with closing(Solo(job, scratch, devices[0], stop)) as crew:
            run.stage("planning")
            plan = make_plan(folder, job, crew.facts())
            parts = run.begin(plan, share)
            crew.work(plan, parts, run)
        return run.end(len(parts))


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
        finished = self._manifest.finished
        ours = range(share[0], plan.parts, share[1])
        counts = [plan.span(part).items for part in ours]
        self._tally.work(
            len(ours),
            sum(counts) if all(counts) else 0,
            [line for part, line in finished.items() if part in ours],
        )
        self.tell_now()
        return [part for part in ours if part not in finished]

    def end(self, parts: int) -> RunFigures:
        """Looks at the errors once more.

        Args:
            parts: How many were to be done.
        """
        self._check_errors(least=1)
        self._tally.stage = "done"
        self._tally.stopped = self._tally.figures().parts_done < parts
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
            said = ", ".join(
                f"{reason} ({count} times)" for reason, count in self._tally.reasons().items()
            )
            raise InputError(
                f"{errors} of {items} items are errors, more than --max-error-rate "
                f"{self._most:g}{': ' if said else ''}{said}. Each is in "
                f"{str(self._manifest.errors_path)!r}; what is finished stays: give a higher rate "
                "to go on with it"
            )
