"""What many sessions of one engine cost together, around a model that computes nothing.

CPU is this process's own, of all its threads: the worker's, and that of who calls, which is also
the users' part. By the batch door there is one thread that hands over the hops of all in an array,
as an engine's process does for those of its clients; by `await session.step` a coroutine for each.
"""

from __future__ import annotations

import asyncio
import cProfile
import pstats
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import anyio
import numpy as np
from numpy.typing import NDArray

from bench.cores import OthersCpu
from bench.cpu.nothing import Nothing
from bench.harness import Row, Settings, Table
from streamenc.engine.engine import Engine
from streamenc.engine.exchange.door import Answer, Batch
from streamenc.engine.seats import Seat
from streamenc.stream import Stream

COUNTS, QUICK_COUNTS = (256, 512, 1024, 2048), (32, 64)
PROFILED, QUICK_PROFILED = 1024, 64
TARGET_US, TARGET_JOINS = 10.0, 20.0
# Where hops arrive spread over their own length, so many come together.
PARTS = 16
WARMUP_ROUNDS = 3
TOP = 10


class Inlet:
    """An outlet that says when so many answers are there, and raises the first error of them."""

    def __init__(self) -> None:
        self._awaited = 0
        self._there = threading.Event()
        self._errors: list[BaseException] = []

    def expect(self, count: int) -> None:
        self._there.clear()
        self._awaited = count

    def deliver(self, answers: list[Answer]) -> None:
        self._errors += [error for *_, error in answers if error is not None]
        self._awaited -= len(answers)
        if not self._awaited:
            self._there.set()

    def wait(self) -> None:
        if not self._there.wait(60):
            raise RuntimeError(f"{self._awaited} answers did not come within a minute")
        if self._errors:
            raise self._errors[0]


class Crowd:
    """Seats of one engine and one model, whose hops go through the batch door."""

    def __init__(self, count: int, *, places: int = 0, max_wait_ms: float = 5.0) -> None:
        self.engine = Engine(max_sessions=places or count, max_wait_ms=max_wait_ms)
        self.model = Nothing()
        self.worker_clock = time.pthread_getcpuclockid(_ident(self.engine))
        self.inlet = Inlet()
        self.seats = self.more(count)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *error: object) -> None:
        self.engine.close()

    def more(self, count: int) -> list[Seat]:
        return [self.engine.seat(self.model) for _ in range(count)]

    def submit(self, seats: Sequence[Seat], hops: NDArray[np.float32]) -> None:
        self.engine.submit(Batch(seats, hops, range(len(seats)), self.inlet))

    def hop(self, seats: Sequence[Seat], hops: NDArray[np.float32]) -> float:
        """One hop of each seat, at once; how long until all answers were there, in seconds."""
        self.inlet.expect(len(seats))
        start = time.perf_counter()
        self.submit(seats, hops)
        self.inlet.wait()
        return time.perf_counter() - start

    def spread(self, hops: NDArray[np.float32], hop_seconds: float) -> None:
        """One hop of each, in parts that come one after the other within a hop."""
        self.inlet.expect(len(self.seats))
        start, size = time.perf_counter(), -(-len(self.seats) // PARTS)
        for index, at in enumerate(range(0, len(self.seats), size)):
            pause = start + index * hop_seconds / PARTS - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            self.submit(self.seats[at : at + size], hops[at : at + size])
        self.inlet.wait()

    def on_worker(self, call: Callable[[], Any]) -> None:
        self.inlet.expect(1)
        self.engine.ask(self.seats[0], lambda stream: call(), 0, self.inlet)
        self.inlet.wait()


def tables(settings: Settings) -> Iterator[Table]:
    """CPU by the number of sessions; joins, leaves and flushes; what the worker does."""
    counts = QUICK_COUNTS if settings.quick else COUNTS
    rounds = settings.frames
    others = OthersCpu()
    rows = []
    for count in counts:
        rows += [_at_once(count, rounds), _spread(count, rounds), _awaited(count, rounds)]
    yield Table(
        "Many sessions of a model that computes nothing",
        "ms of CPU for a hop of each",
        rows,
        facts={"CPU used by others meanwhile": str(others)},
    )
    many = QUICK_PROFILED if settings.quick else PROFILED
    rows = [*_joins(many, max(3, rounds // 25)), *_held_up(many // 2, max(3, rounds // 10))]
    yield Table("Sessions that come and go", "ms", rows)
    yield _profile(many, rounds)


def _at_once(count: int, rounds: int) -> Row:
    hops = _hops(count)
    with Crowd(count) as crowd:
        return _cpu(
            f"{count} sessions, batch door, all at once",
            crowd.worker_clock,
            [lambda: crowd.hop(crowd.seats, hops)] * (WARMUP_ROUNDS + rounds),
            count,
        )


def _spread(count: int, rounds: int) -> Row:
    hops, seconds = _hops(count), _hop_seconds()
    with Crowd(count) as crowd:
        return _cpu(
            f"{count} sessions, batch door, in {PARTS} parts over 20 ms",
            crowd.worker_clock,
            [lambda: crowd.spread(hops, seconds)] * (WARMUP_ROUNDS + rounds),
            count,
        )


def _cpu(name: str, worker_clock: int, runs: Sequence[Callable[[], Any]], count: int) -> Row:
    stamps = [_stamp(worker_clock)]
    for run in runs:
        run()
        stamps.append(_stamp(worker_clock))
    return _judged(name, stamps, count)


def _awaited(count: int, rounds: int) -> Row:
    """A coroutine for each session, which steps as soon as all have their answers."""
    hops = _hops(count)

    async def main() -> Row:
        with Engine(max_sessions=count) as engine:
            model, clock = Nothing(), time.pthread_getcpuclockid(_ident(engine))
            sessions = [engine.open(model) for _ in range(count)]
            stamps = [_stamp(clock)]

            async def live(index: int) -> None:
                session, hop = sessions[index], hops[index]
                for _ in range(WARMUP_ROUNDS + rounds):
                    await session.step(hop)
                    waiting.append(None)
                    if len(waiting) == count:
                        waiting.clear()
                        stamps.append(_stamp(clock))
                        turn[0].set()
                        turn[0] = asyncio.Event()
                    else:
                        await turn[0].wait()

            waiting: list[None] = []
            turn = [asyncio.Event()]
            await asyncio.gather(*map(live, range(count)))
            for session in sessions:
                session.close()
        return _judged(f"{count} sessions, await session.step", stamps, count)

    return anyio.run(main)


def _stamp(worker_clock: int) -> tuple[float, float]:
    """CPU seconds so far: of the process, and of the worker."""
    return time.process_time(), time.clock_gettime(worker_clock)


def _judged(name: str, stamps: Sequence[tuple[float, float]], count: int) -> Row:
    """The row of what was used between one round and the next."""
    stamps = stamps[WARMUP_ROUNDS:]
    rounds = len(stamps) - 1
    whole_us, worker_us = (
        1e6 * (last - first) / rounds / count
        for first, last in zip(stamps[0], stamps[-1], strict=True)
    )
    times_ms = [1e3 * (b[0] - a[0]) for a, b in zip(stamps, stamps[1:], strict=False)]
    met = "met" if whole_us <= TARGET_US else "MISSED"
    note = (
        f"{whole_us:.1f} us a session and hop, {worker_us:.1f} of it the worker's; "
        f"target {TARGET_US:g}: {met}"
    )
    return Row.of(name, times_ms, note=note)


def _joins(count: int, rounds: int) -> list[Row]:
    """First steps of all at once, beside a step of all."""
    hops = _hops(count)
    step_ms, joins_ms = [], []
    with Crowd(count) as crowd:
        for _ in range(WARMUP_ROUNDS + rounds):
            joins_ms.append(1e3 * crowd.hop(crowd.seats, hops))
            step_ms += [1e3 * crowd.hop(crowd.seats, hops) for _ in range(WARMUP_ROUNDS)]
            for seat in crowd.seats:
                crowd.engine.give_up(seat, "the round is over")
            crowd.seats = crowd.more(count)
    step_ms, joins_ms = step_ms[WARMUP_ROUNDS**2 :], joins_ms[WARMUP_ROUNDS:]
    ratio = median(joins_ms) / median(step_ms)
    met = "met" if ratio <= TARGET_JOINS else "MISSED"
    note = f"{ratio:.1f} times that step; target {TARGET_JOINS:g}: {met}"
    return [
        Row.of(f"a step of {count}", step_ms),
        Row.of(f"{count} joins at once", joins_ms, note=note),
    ]


def _held_up(count: int, rounds: int) -> list[Row]:
    """A tick of some while half as many others leave, flush, or do nothing. Hops do not wait for
    those of others here: that, too, would be time."""
    half = count // 2
    hops = _hops(count)
    times_ms: dict[str, list[float]] = {"are idle": [], "leave": [], "flush": []}
    with Crowd(half, places=count, max_wait_ms=0) as crowd:
        for _ in range(rounds):
            for what, found_ms in times_ms.items():
                neighbours, flushed = crowd.more(half), Inlet()
                crowd.hop([*crowd.seats, *neighbours], hops)
                flushed.expect(half)
                for seat in neighbours:
                    if what == "leave":
                        crowd.engine.give_up(seat, "it leaves")
                    elif what == "flush":
                        crowd.engine.ask(seat, Stream.flush, 0, flushed)
                found_ms.append(1e3 * crowd.hop(crowd.seats, hops[:half]))
                if what == "flush":
                    flushed.wait()
                for seat in neighbours:
                    crowd.engine.give_up(seat, "the round is over")
                crowd.hop(crowd.seats, hops[:half])
    idle_ms = median(times_ms["are idle"])
    return [
        Row.of(
            f"a tick of {half} while {half} others {what}",
            found_ms,
            note="" if what == "are idle" else f"held up by {median(found_ms) - idle_ms:.2f} ms",
        )
        for what, found_ms in times_ms.items()
    ]


def _profile(count: int, rounds: int) -> Table:
    """The functions that the worker spends most in, by their own time."""
    hops, profile = _hops(count), cProfile.Profile()
    with Crowd(count) as crowd:
        for _ in range(WARMUP_ROUNDS):
            crowd.hop(crowd.seats, hops)
        crowd.on_worker(profile.enable)
        for _ in range(rounds):
            crowd.hop(crowd.seats, hops)
        crowd.on_worker(profile.disable)
    found: dict[tuple[str, int, str], tuple[int, int, float, float, Any]]
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    waits = "acquire", "get"  # for the next hops
    own = sorted(
        ((own, calls, where) for where, (_, calls, own, _, _) in found.items()), reverse=True
    )
    facts = {}
    for seconds, calls, (file, line, function) in own:
        if any(f"'{wait}' of '_" in function for wait in waits):
            continue
        place = function if file == "~" else f"{Path(file).name}:{line} {function}"
        facts[place] = (
            f"{1e6 * seconds / rounds / count:.2f} us a session and hop, "
            f"{calls / rounds / count:.2g} calls"
        )
        if len(facts) == TOP:
            break
    return Table(f"The worker's own time with {count} sessions, by cProfile", "us", [], facts=facts)


def _hops(count: int) -> NDArray[np.float32]:
    """A hop of each, (sessions, 1, samples)."""
    samples = Nothing().spec.hop
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (count, 1, samples))
    return noise.astype(np.float32)


def _hop_seconds() -> float:
    spec = Nothing().spec
    return float(spec.hop / spec.input.rate)


def _ident(engine: Engine) -> int:
    """The worker's thread, which runs by now."""
    ident = engine._worker.ident
    assert ident is not None
    return ident
