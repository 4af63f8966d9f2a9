"""Workforce: the workers of a run, what each does, and what becomes of it when one dies."""

from __future__ import annotations

import selectors
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from streamenc import errors
from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.partwork import Done, Progress
from streamenc.bulk.tokenizejob import ModelFacts, TokenizeJob
from streamenc.bulk.workers.messages import Beat, End, Failure, Ready, Setup, Take
from streamenc.bulk.workers.partprocess import PartProcess, logger
from streamenc.bulk.workers.stop import Abandoned, Stop
from streamenc.bulk.workers.worklistener import Listener
from streamenc.errors import StreamencError

LOOK_SECONDS = 0.1
END_SECONDS = 5.0
MOST_WITHOUT_ITEM = 3  # deaths of workers, in a row
MOST_DEATHS = 30  # in a row, without a part that was finished


class Workforce:
    """Workers that do parts, as many as there are devices to do them on.

    Args:
        output, scratch: Folders of the set and of this run alone.
        devices: One for each worker, as `streamenc.load` takes them.
        decoders: Of each worker; see Tokenizer.
        item_timeout_seconds: After which a worker of which nothing comes is ended.
    """

    def __init__(
        self,
        job: TokenizeJob,
        output: Path,
        scratch: Path,
        devices: Sequence[str],
        stop: Stop,
        *,
        decoders: int | None = None,
        item_timeout_seconds: float | None = None,
    ) -> None:
        self._job, self._output, self._scratch = job, output, scratch
        self._decoders, self._stop = decoders, stop
        self._timeout = item_timeout_seconds
        self._selector = selectors.DefaultSelector()
        self._facts: tuple[ModelFacts, ...] | None = None
        self._todo: deque[int] = deque()
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._skip: dict[int, dict[str, str]] = {}
        self._singly: set[int] = set()
        self._without_item = self._in_a_row = 0
        self._workers: list[PartProcess] = []
        self._graceful = False
        try:
            for number, device in enumerate(devices):
                self._start(number, device)
        except BaseException:  # Ctrl-C among them: those that started are ended; passed on
            self.close()
            raise
        # The others wait with theirs: what has to be downloaded is downloaded once.
        self._set_up(self._workers[0])

    @property
    def size(self) -> int:
        return len(self._workers)

    def facts(self, listener: Listener) -> tuple[ModelFacts, ...]:
        """What the models are, once a worker has loaded them.

        Raises what Tokenizer raises, and Abandoned where the run is asked to stop before that.
        """
        while self._facts is None:
            if self._stop.asked:
                raise Abandoned
            self._pump(listener)
        for worker in self._workers:
            if not worker.loading:
                self._set_up(worker)
        return self._facts

    def work(self, plan: JobPlan, parts: Sequence[int], listener: Listener) -> None:
        """Has parts done, begun in their order, until all are or the run is asked to stop.

        Raises:
            OutputError: Where one cannot be written.
            StreamencError: Where workers die again and again, and not of one item.
        """
        self._todo.extend(parts)
        while len(self._workers) > max(1, len(parts)):
            self._dismiss(self._workers.pop())
        while not self._stop.abandoned:
            if not self._stop.asked:
                self._hand_out()
            busy = any(worker.order is not None for worker in self._workers)
            if not busy and (self._stop.asked or not self._todo):
                self._graceful = True
                return
            self._pump(listener)

    def close(self) -> None:
        """Ends the workers: those that have nothing to do as they see fit, others at once."""
        ends_at = time.monotonic() + END_SECONDS
        for worker in self._workers:
            if self._graceful and worker.ready:
                worker.tell(End())
            else:
                worker.kill()
        for worker in self._workers:
            worker.close(max(0.0, ends_at - time.monotonic()))
        self._workers.clear()
        self._selector.close()

    def _start(self, number: int, device: str) -> PartProcess:
        worker = PartProcess(number, device)
        self._workers.append(worker)
        self._selector.register(worker.reports, selectors.EVENT_READ, worker)
        self._selector.register(worker.errors, selectors.EVENT_READ, worker)
        return worker

    def _set_up(self, worker: PartProcess) -> None:
        worker.loading = True
        worker.tell(
            Setup(
                self._job,
                str(self._output),
                str(self._scratch),
                worker.device,
                self._decoders,
                sys.path,
            )
        )

    def _hand_out(self) -> None:
        for worker in self._workers:
            if self._todo and worker.ready and worker.order is None:
                part = self._todo.popleft()
                worker.tell(Take(part, self._skip.get(part, {}), part in self._singly))

    def _pump(self, listener: Listener) -> None:
        """Hears what workers say, for a moment."""
        for key, _ in self._selector.select(LOOK_SECONDS):
            worker: PartProcess = key.data
            if key.fileobj is worker.errors:
                worker.pass_on()
            else:
                self._hear(worker, listener)
        for worker in list(self._workers):
            if worker.ended:
                self._hear(worker, listener)  # its last words
                self._bury(worker, listener)
            else:
                self._look_after(worker)
        listener.look()

    def _hear(self, worker: PartProcess, listener: Listener) -> None:
        for report in worker.hear():
            if isinstance(report, Ready):
                worker.ready, self._facts = True, report.facts
            elif isinstance(report, Progress):
                listener.told(report)
            elif isinstance(report, Beat):
                listener.memory(report.peak_bytes)
            elif isinstance(report, Done):
                self._without_item = self._in_a_row = 0
                listener.finished(report)
            elif isinstance(report, Failure):
                raise _error_of(report)

    def _look_after(self, worker: PartProcess) -> None:
        quiet = time.monotonic() - worker.heard_at
        if self._timeout is not None and worker.order is not None and quiet > self._timeout:
            worker.kill(f"nothing came of it for {self._timeout:g} s")

    def _bury(self, worker: PartProcess, listener: Listener) -> None:
        """A worker is gone; another takes its place, and its part is done anew."""
        how = worker.how_it_ended()
        self._dismiss(worker)
        at = self._workers.index(worker)
        del self._workers[at]
        suspects = list(worker.in_hand)
        self._in_a_row += 1
        self._without_item = 0 if suspects else self._without_item + 1
        if worker.order is not None:
            part = worker.order.part
            listener.lost(part)
            self._todo.appendleft(part)
            self._suspect(part, suspects, how)
        if self._without_item >= MOST_WITHOUT_ITEM or self._in_a_row >= MOST_DEATHS:
            raise StreamencError(self._gave_up(worker, how))
        if self._stop.asked:
            return
        logger.warning(
            "worker %d: %s%s; another takes its place",
            worker.number,
            how,
            f", at {', '.join(map(repr, suspects[:3]))}" if suspects else "",
        )
        self._start(worker.number, worker.device)
        self._workers.insert(at, self._workers.pop())
        if self._facts is not None or at == 0:
            self._set_up(self._workers[at])

    def _suspect(self, part: int, keys: list[str], how: str) -> None:
        """Counts a death against the items that were in hand.

        Of several, the one that did it is found by taking them one by one.
        """
        if len(keys) > 1:
            self._singly.add(part)
        for key in keys:
            self._deaths[part, key] += 1
            if len(keys) == 1 and self._deaths[part, key] > 1:
                self._skip.setdefault(part, {})[key] = f"{how}, for the second time"

    def _gave_up(self, worker: PartProcess, how: str) -> str:
        if worker.order is not None:
            what = f"they did part {worker.order.part}"
        elif worker.ready:
            what = "they had nothing to do"
        else:
            what = "they loaded the models"
        times = self._in_a_row if self._in_a_row >= MOST_DEATHS else self._without_item
        return (
            f"{times} workers died one after the other; the last when {what}: {how}. Where memory "
            "runs out, give fewer --workers; with --workers 0 this process does it all, and one "
            "sees where it ends"
        )

    def _dismiss(self, worker: PartProcess) -> None:
        self._selector.unregister(worker.reports)
        self._selector.unregister(worker.errors)
        worker.kill()
        worker.close()


def _error_of(failure: Failure) -> StreamencError:
    """What a worker raised, as it did."""
    kind = getattr(errors, failure.error, None)
    if not (isinstance(kind, type) and issubclass(kind, StreamencError)):
        kind = StreamencError
    if kind in (errors.EngineFull, errors.NodeError):  # which are made of more than a message
        kind = StreamencError
    return kind(failure.message)
