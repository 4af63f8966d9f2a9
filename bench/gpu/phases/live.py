"""Live sessions of Mimi on an engine, from when a hop is due to its codes on the host.

Hops are due evenly spread over 80 ms, as those of streams are that know nothing of each other.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import torch

from bench.gpu.phase import Phase
from bench.gpu.phases.models import CODEBOOKS, MIMI, SMALL, Case
from bench.gpu.timing import collect, note_clocks, open_device
from bench.harness import Row
from streamenc.engine.engine import Engine
from streamenc.engine.statistics import EngineStatistics
from streamenc.models.model import Model

TABLE = "Live sessions on an engine, {case}, hops due evenly spread"
SESSIONS, DRY_SESSIONS = (64, 256), (2, 3)
# Not counted: the first hops, in which sessions join.
JOIN_HOPS, HOPS, DRY_HOPS = 8, 32, (2, 3)
LATE_HOPS = 2


def run(phase: Phase) -> None:
    """The phase `engine`."""
    device = open_device(phase)
    case = SMALL if phase.dry else MIMI
    table = TABLE.format(case=case.name)
    model = case.load(phase.folder, device)
    for count in DRY_SESSIONS if phase.dry else SESSIONS:
        _timed(phase, table, case, model, count)
        collect(device)
    note_clocks(phase)


def _timed(phase: Phase, table: str, case: Case, model: Model, count: int) -> None:
    hops = DRY_HOPS if phase.dry else (JOIN_HOPS, HOPS)
    spec = model.spec
    hop_ms = 1e3 * float(spec.hop / spec.input.rate)
    known: list[EngineStatistics] = []
    late = 0

    def call() -> list[float]:
        nonlocal late
        found, statistics = asyncio.run(_live(case, model, count, hops))
        known.append(statistics)
        late = sum(ms > LATE_HOPS * hop_ms for ms in found)
        return found

    def note(row: Row) -> str:
        told = known[0]
        said = (
            f"{late} of {row.count} later than {LATE_HOPS} hops, a tick {told.tick.p50_ms:.2f} ms"
        )
        return f"{said} at p50, {told.hops_per_tick:.1f} hops on {told.lanes_per_tick:.1f} lanes"

    phase.timed(
        table,
        f"{count} sessions, from due to codes on the host",
        call,
        unit=f"ms a hop of {hop_ms:g} ms",
        subject=case.title,
        seconds=sum(hops) * hop_ms / 1e3,
        note=note,
    )


async def _live(
    case: Case, model: Model, count: int, hops: tuple[int, int]
) -> tuple[list[float], EngineStatistics]:
    """Milliseconds of each hop of all sessions, and what the engine says of itself.

    hops  Those in which sessions join, which are not counted, and the others.
    """
    spec = model.spec
    hop_seconds = float(spec.hop / spec.input.rate)
    sound = case.signal(model, count, sum(hops) * spec.hop).numpy()
    times_ms: list[float] = []

    async def client(engine: Engine, index: int, start: float) -> None:
        with engine.open(model, codebooks=CODEBOOKS) as session:
            for number in range(sum(hops)):
                due = start + number * hop_seconds
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                chunk = sound[index, :, number * spec.hop : (number + 1) * spec.hop]
                _to_host(await session.step(chunk))
                if number >= hops[0]:
                    times_ms.append(1e3 * (time.perf_counter() - due))

    engine = Engine(max_sessions=count)
    try:
        await engine.warm(model, codebooks=CODEBOOKS, sessions=count)
        start = time.perf_counter() + hop_seconds
        async with asyncio.TaskGroup() as clients:
            for index in range(count):
                clients.create_task(client(engine, index, start + index / count * hop_seconds))
        return times_ms, engine.statistics()
    finally:
        await engine.aclose()


def _to_host(codes: Any) -> np.ndarray[Any, Any]:
    """What users read."""
    return codes.cpu().numpy() if isinstance(codes, torch.Tensor) else np.asarray(codes)
