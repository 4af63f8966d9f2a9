"""RayCrew: the workers of a run as a pool of actors of Ray Data, on all machines of a cluster."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import msgspec
import numpy as np
import ray
import ray.data
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from streamenc import __version__, errors
from streamenc.bulk.cluster.partactor import PartActor, PartSetup, one_by_one
from streamenc.bulk.cluster.partboard import PartBoard
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.inputs.filesystem import is_remote, local_name
from streamenc.bulk.jobplan import JobPlan
from streamenc.bulk.partwork import Done
from streamenc.bulk.tokenizejob import ModelFacts, TokenizeJob
from streamenc.bulk.workers.stop import Stop
from streamenc.bulk.workers.worklistener import Listener
from streamenc.errors import OutputError, StreamencError, TransportError, UsageError

# Parts that Ray Data is given at once: what it holds in memory for each is no more than that.
WAVE = 20_000
LOOK_SECONDS = 0.1
NEWS_SECONDS = 0.5
END_SECONDS = 10.0  # to break off what is in hand
MOST_WAVES_IN_VAIN = 3


class RayCrew:
    """Workers on a cluster.

    Args:
        output, scratch: Folders of the set and of this run alone, which all machines see.
        left: How many parts there are at most.
        address: Of the cluster; see tokenize_on_ray.
        concurrency: As tokenize_on_ray has it.
        gpus: Of each worker, or a share of one; 0 for a CPU.

    Raises what Tokenizer raises; UsageError where the cluster has no room for a worker, and
    TransportError where there is none.
    """

    def __init__(
        self,
        job: TokenizeJob,
        output: Path,
        scratch: Path,
        left: int,
        stop: Stop,
        *,
        address: str | None = None,
        concurrency: int | tuple[int, int] | None = None,
        gpus: float = 0.0,
    ) -> None:
        self._output, self._scratch = output.resolve(), scratch.resolve()
        self._job, self._stop, self._gpus = job, stop, gpus
        with Tokenizer(job, scratch, decoders=0) as tokenizer:
            self._facts = tokenizer.facts
        self._connected = _connect(address)
        self._board: Any = None
        try:
            room, self._cpus = _room(gpus)
            self._least, self._most = _pool(concurrency, room, left)
            here = ray.get_runtime_context().get_node_id()
            self._board = (
                ray.remote(PartBoard)
                .options(
                    num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)
                )
                .remote()
            )
        except BaseException:  # Ctrl-C among them: let go, and passed on
            self.close()
            raise
        self._stopped = 0
        self._told_at = 0.0
        self._in_hand: set[int] = set()
        self._made: dict[int, Done] = {}

    @property
    def size(self) -> int:
        return self._most

    def facts(self, listener: Listener) -> tuple[ModelFacts, ...]:
        return self._facts

    def work(self, plan: JobPlan, parts: Sequence[int], listener: Listener) -> None:
        """Has parts done, until all are or the run is asked to stop.

        Raises:
            OutputError: Where one cannot be written, or was made twice and differs.
            StreamencError: What a worker raised, and where one part ends its workers again and
                again.
        """
        token = f"here-{uuid.uuid4().hex}"
        (self._scratch / token).touch()
        setup = PartSetup(
            version=__version__,
            output=str(self._output),
            scratch=str(self._scratch),
            token=token,
            needed=_needed(plan.job.input),
            device="cuda" if self._gpus else "cpu",
            decoders=self._cpus - 1,
        )
        left, in_vain = list(parts), 0
        while left and not self._stop.asked:
            self._made.clear()
            error = self._wave(left[:WAVE], setup, listener)
            in_vain = 0 if self._made else in_vain + 1
            left = [part for part in left if part not in self._made]
            if in_vain >= MOST_WAVES_IN_VAIN and not self._stop.asked:
                raise error or TransportError("Ray made nothing of any part, and does not say why")

    def close(self) -> None:
        """Ends the workers, and leaves the cluster where this run came to it."""
        if self._board is not None:
            ray.kill(self._board)
        if self._connected:
            ray.shutdown()

    def _wave(
        self, parts: list[int], setup: PartSetup, listener: Listener
    ) -> TransportError | None:
        """Some of the parts. Gives the error with which Ray gave up on the others."""
        rows, done = _Rows(self._dataset(np.array(parts), setup)), False
        try:
            # Ray may yet wait for a worker of a lost machine to come back, for what another did.
            while not rows.ended and len(self._made) < len(parts):
                row = rows.next(LOOK_SECONDS)
                self._hear(listener, now=row is not None)
                if row is not None:
                    self._take(row, listener)
                elif self._finished_stopping():
                    break
                listener.look()
            done = len(self._made) == len(parts)
        finally:
            if not done:
                with suppress(RayError):
                    ray.get(self._board.stop.remote(2))
            rows.close(1.0 if done else END_SECONDS)
        return rows.error

    def _dataset(self, parts: np.ndarray, setup: PartSetup) -> ray.data.Dataset:
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.target_max_block_size = 1  # bytes: a part is a block
        resources = {"num_cpus": self._cpus, **({"num_gpus": self._gpus} if self._gpus else {})}
        # Ray adds workers to a pool that may grow where each has two parts; others have one.
        fixed = self._least == self._most
        with ray.data.DataContext.current(context):
            return (
                ray.data.from_numpy(parts)
                .map_batches(one_by_one, batch_size=None, batch_format="pyarrow", num_cpus=0)
                .map_batches(
                    PartActor,
                    fn_constructor_args=(setup, self._board),
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(
                        min_size=self._least,
                        max_size=self._most,
                        max_tasks_in_flight_per_actor=1 if fixed else 2,
                    ),
                    **resources,
                )
            )

    def _take(self, row: dict[str, Any], listener: Listener) -> None:
        part = row["part"]
        self._in_hand.discard(part)
        if row["error"]:
            raise _error_of(row["error"])
        if not row["done"]:
            return  # the run is asked to stop
        done = msgspec.json.decode(row["done"], type=Done)
        before = self._made.get(part)
        if before is None:
            self._made[part] = Done(done.line, [])
            listener.finished(done)
        elif before.line.files != done.line.files:
            raise OutputError(
                f"part {part} was made twice, as a machine was lost, and its bytes differ: are the "
                f"machines of one kind? Remove its line of the manifest of {str(self._output)!r}, "
                "and run again"
            )

    def _hear(self, listener: Listener, now: bool) -> None:
        """What the board has to tell, and what it is told."""
        if not now and time.monotonic() - self._told_at < NEWS_SECONDS:
            return
        self._told_at = time.monotonic()
        asked = self._stop.asked + self._stop.abandoned
        try:
            if asked > self._stopped:
                ray.get(self._board.stop.remote(asked))
                self._stopped = asked
            news = ray.get(self._board.news.remote())
        except RayError as error:
            raise TransportError(f"the cluster is out of reach: {_last_line(error)}") from error
        for part in news.lost:
            listener.lost(part)
        self._in_hand.update(news.begun)
        for progress in news.progress:
            if progress.part not in self._made:
                listener.told(progress)
        listener.memory(news.peak_bytes)

    def _finished_stopping(self) -> bool:
        """Whether all that was in hand when the board was told to stop has come."""
        return bool(self._stopped) and not self._in_hand


class _Rows:
    """The rows of a data set as they are made, read in a thread of their own.

    Attributes:
        error: With which Ray gave up, once that is so.
    """

    def __init__(self, dataset: ray.data.Dataset) -> None:
        self.error: TransportError | None = None
        self._queue: Queue[dict[str, Any]] = Queue(64)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(dataset,), name="streamenc-ray-rows", daemon=True
        )
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive() and self._queue.empty()

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next one, if it comes within so long."""
        try:
            return self._queue.get(timeout=seconds)
        except Empty:
            return None

    def close(self, seconds: float) -> None:
        """Takes no more. Waits so long, at most, until Ray has ended what makes them."""
        self._closed.set()
        self._thread.join(seconds)

    def _read(self, dataset: ray.data.Dataset) -> None:
        try:
            blocks = dataset.iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
            for block in blocks:
                for row in block.to_pylist():
                    self._put(row)
                if self._closed.is_set():
                    return
        except RayError as error:
            self.error = TransportError(
                f"Ray gave up: {_last_line(error)}; what is finished stays, and the same command "
                "goes on with it"
            )

    def _put(self, row: dict[str, Any]) -> None:
        while not self._closed.is_set():
            try:
                self._queue.put(row, timeout=LOOK_SECONDS)
                return
            except Full:
                continue


def _connect(address: str | None) -> bool:
    """Whether this run came to a cluster, or started one; not where the caller had."""
    if ray.is_initialized():
        return False
    ours = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM) if ours}
    try:
        ray.init(address, logging_level="warning", log_to_driver=False)
        for each, handler in before.items():
            signal.signal(each, handler)  # Ray has one of its own, which ends the process
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise TransportError(
            f"there is no cluster of Ray at {address or 'this machine'!r}: {_last_line(error)}"
        ) from error
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    return True


def _room(gpus: float) -> tuple[int, int]:
    """How many workers the machines of the cluster have room for, and the cores of each."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not gpus:
        return sum(int(machine.get("CPU", 0)) for machine in machines), 1
    room, cores = 0, []
    for machine in machines:
        cpus = int(machine.get("CPU", 0))
        if workers := min(math.floor(machine.get("GPU", 0) / gpus), cpus):
            room += workers
            cores.append(cpus // workers)
    return room, min(cores, default=1)


def _pool(concurrency: int | tuple[int, int] | None, room: int, left: int) -> tuple[int, int]:
    """The least and the most workers. Raises UsageError."""
    if concurrency is None:
        if not room:
            raise UsageError(
                "no machine of the cluster has what a worker needs, a core, and the GPUs that were "
                "asked for; where they are yet to come, say how many workers (concurrency=...)"
            )
        concurrency = room
    least, most = concurrency if isinstance(concurrency, tuple) else (concurrency, concurrency)
    if not 1 <= least <= most:
        raise UsageError(f"got concurrency {concurrency!r}; wanted workers, or (least, most)")
    few = max(1, left)
    return min(least, few), min(most, few)


def _needed(address: str) -> tuple[str, ...]:
    """What of an input has to be seen by all machines: where it begins, on this one."""
    if is_remote(address):
        return ()
    path = Path(os.path.abspath(local_name(address)))
    while not path.exists():  # a pattern
        path = path.parent
    return (str(path),)


def _error_of(said: str) -> StreamencError:
    """What a worker raised, as it did."""
    name, _, message = said.partition(": ")
    kind = getattr(errors, name, StreamencError)
    return (StreamencError if "__init__" in vars(kind) else kind)(message)


def _last_line(error: Exception) -> str:
    """Of Ray's errors, whose last lines are those of the error that they are about."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
