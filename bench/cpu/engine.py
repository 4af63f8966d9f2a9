"""What the engine costs: the time of `await session.step(chunk)` beyond the step itself.

Both are of the same call: the step is timed on the worker, around the two halves of `Stream.push`.
What remains is the way to the worker and back through the event loop. What many sessions cost
together is in crowd.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import anyio
import torch
from torch import Tensor

import streamenc
from bench import signals, weights
from bench.cpu import crowd
from bench.harness import Row, Settings, Table
from streamenc.engine.engine import Engine
from streamenc.engine.seats import Seat
from streamenc.engine.session import Session
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.stream import Stream

TARGET_P50_MS, TARGET_P99_MS = 1.0, 5.0
PACE_SECONDS = 0.02
WARMUP_STEPS = 5


class TimedStream(Stream):
    """A stream that keeps how long its last push took, in nanoseconds: taking a chunk in, a step.

    The engine calls the two one after the other; what it has staged, it puts in.
    """

    push_ns = 0

    def take(self, chunk: Any) -> None:
        start_ns = time.perf_counter_ns()
        super().take(chunk)
        self.push_ns = time.perf_counter_ns() - start_ns

    def put(self, x: Tensor) -> None:
        start_ns = time.perf_counter_ns()
        super().put(x)
        self.push_ns = time.perf_counter_ns() - start_ns

    def step(self, codebooks: int | None) -> Signal:
        start_ns = time.perf_counter_ns()
        try:
            return super().step(codebooks)
        finally:
            self.push_ns += time.perf_counter_ns() - start_ns


def tables(settings: Settings) -> Iterator[Table]:
    """One session: a short step and a long one, back to back and with pauses as live sound has.
    Then many, of a model that computes nothing."""
    torch.set_num_threads(settings.threads)
    rows = []
    for name in ("mel", str(weights.mimi(settings.folder))):
        model = streamenc.load(name, part="encoder").encoder
        hop = model.spec.hop
        steps = settings.frames + WARMUP_STEPS
        audio = signals.speech(int(model.spec.input.rate), model.spec.lead + steps * hop)
        chunks = torch.split(torch.from_numpy(audio)[None, None, : steps * hop], hop, dim=-1)
        for how, pause in (("back to back", 0.0), ("paced", PACE_SECONDS)):
            whole_ms, step_ms = anyio.run(_times, model, chunks, pause)
            overhead_ms = [a - b for a, b in zip(whole_ms, step_ms, strict=True)]
            rows += [
                Row.of(f"{model.spec.name}, {how}: Stream.push", step_ms),
                Row.of(f"{model.spec.name}, {how}: await session.step", whole_ms),
                _judged(Row.of(f"{model.spec.name}, {how}: overhead", overhead_ms)),
            ]
    yield Table("Engine overhead, one session", "ms per step", rows, threads=settings.threads)
    yield from crowd.tables(settings)


def _judged(row: Row) -> Row:
    assert row.p50_ms is not None and row.p99_ms is not None
    met = row.p50_ms < TARGET_P50_MS and row.p99_ms < TARGET_P99_MS
    target = f"target p50 < {TARGET_P50_MS:g}, p99 < {TARGET_P99_MS:g} ms"
    return replace(row, note=f"{target}: {'met' if met else 'MISSED'}")


async def _times(
    model: Model, chunks: Sequence[Tensor], pause_seconds: float
) -> tuple[list[float], list[float]]:
    """Milliseconds of each awaited step, and of the push within it."""
    whole_ms, step_ms = [], []
    with Engine() as engine:
        stream = TimedStream(model)
        session = Session(engine, Seat(stream))
        for index, chunk in enumerate(chunks):
            await anyio.sleep(pause_seconds)
            start_ns = time.perf_counter_ns()
            await session.step(chunk)
            elapsed_ns = time.perf_counter_ns() - start_ns
            if index >= WARMUP_STEPS:
                whole_ms.append(elapsed_ns / 1e6)
                step_ms.append(stream.push_ns / 1e6)
        session.close()
    return whole_ms, step_ms
