"""Which work runs when: batches, waits, turns between models, bursts, newcomers and the closed."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor

import streamenc
from streamenc import state as states
from streamenc.engine.engine import Engine
from streamenc.engine.group import Group
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.session import Session
from streamenc.engine.statistics import Meter
from streamenc.errors import UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.answers import joined

LONG_MS = 30_000.0  # longer than a test: who waits for it hangs


class Noted:
    """A model that notes each of its steps: (its name, lanes, whether it starts or ends)."""

    def __init__(self, name: str, notes: list[tuple[str, int, str]], of: str = "mimi") -> None:
        original = zoo.model(of, "encoder", torch.float32)
        self.model: Model = copy.copy(original)
        self.failing = False

        def step(x: Tensor, state: Any, *, end: bool = False) -> Any:
            kind = "end" if end else "hop" if state is not None else "lead"
            notes.append((name, x.shape[0], kind))
            if self.failing:
                raise RuntimeError("out of memory")
            return original.step(x, state, end=end)

        self.model.step = step  # type: ignore[method-assign]


@asynccontextmanager
async def held(engine: Engine) -> AsyncIterator[None]:
    """The worker waits at the beginning, and finds all that was asked for meanwhile at the end."""
    release, holding = threading.Event(), threading.Event()

    def hold() -> None:
        holding.set()
        release.wait(30)

    call = asyncio.create_task(engine.run(hold))
    await asyncio.to_thread(holding.wait, 30)
    yield
    await asyncio.sleep(0.01)
    release.set()
    await call


def hops(model: Model, count: int, seed: int = 0) -> Tensor:
    x = zoo.signal(model, count * model.spec.hop, seed=seed)
    assert isinstance(x, Tensor)
    return x


async def started(engine: Engine, model: Model, count: int, **options: Any) -> list[Session]:
    """Sessions past their first step."""
    sessions = [engine.open(model, **options) for _ in range(count)]
    for session in sessions:
        await session.step(hops(model, 1))
    return sessions


def test_all_with_a_hop_step_together_without_waiting():
    notes: list[tuple[str, int, str]] = []
    model = Noted("m", notes).model

    async def main() -> None:
        with Engine(max_wait_ms=LONG_MS) as engine:
            sessions = await started(engine, model, 5)
            assert notes == [("m", 1, "lead")] * 5
            for _ in range(3):
                async with held(engine):
                    steps = [asyncio.create_task(s.step(hops(model, 1))) for s in sessions]
                await asyncio.gather(*steps)
            assert notes[5:] == [("m", 5, "hop")] * 3
            assert (engine.statistics().ticks, engine.statistics().hops) == (8, 20)

    anyio.run(main)


def test_the_oldest_hop_waits_no_longer_than_max_wait():
    notes: list[tuple[str, int, str]] = []
    model = Noted("m", notes).model

    async def main() -> float:
        with Engine(max_wait_ms=80) as engine:
            first, second, _ = await started(engine, model, 3)
            start = time.perf_counter()
            await asyncio.gather(first.step(hops(model, 1)), second.step(hops(model, 1)))
            return time.perf_counter() - start

    seconds = anyio.run(main)
    assert [kind for _, _, kind in notes[3:]] == ["hop"]
    assert 0.08 <= seconds < 5


def test_a_single_session_waits_for_nobody_and_has_no_lane():
    notes: list[tuple[str, int, str]] = []
    model = Noted("m", notes).model

    async def main() -> None:
        with Engine(max_wait_ms=LONG_MS) as engine:
            first, second = await started(engine, model, 2)
            engine.open(model).close()
            await asyncio.gather(first.step(hops(model, 1)), second.step(hops(model, 1)))
            group = engine._scheduler._groups[model]
            assert len(group.lanes) == 2 and states.nbytes(group.lanes._pool)
            second.close()
            for _ in range(3):
                state = first._seat.stream.state
                await first.step(hops(model, 1))
            assert len(group.lanes) == states.nbytes(group.lanes._pool) == 0
            # The step's own result is the next step's state, and its rings are the same memory.
            after = first._seat.stream.state
            assert isinstance(state, tuple) and isinstance(after, tuple)
            assert state[1][1][0] is after[1][1][0]
            first.close()
            await engine.run(int)
            assert model not in engine._scheduler._groups

    anyio.run(main)


def test_sessions_before_their_first_step_are_not_waited_for():
    model = zoo.model("encodec", "encoder", torch.float32)

    async def main() -> None:
        with Engine(max_wait_ms=LONG_MS) as engine:
            (first,) = await started(engine, model, 1)
            await first.step(zoo.signal(model, model.spec.lead))
            silent, short = engine.open(model), engine.open(model)
            assert (await short.step(zoo.signal(model, 3))).shape[-1] == 0
            for _ in range(3):
                assert (await first.step(hops(model, 1))).shape[-1] == 1
            assert silent.codebooks is None

    anyio.run(main)


def test_a_burst_does_not_hold_up_another_session():
    notes: list[tuple[str, int, str]] = []
    model = Noted("m", notes).model

    async def main() -> float:
        with Engine(max_wait_ms=200) as engine:
            burst, live = await started(engine, model, 2)
            async with held(engine):
                long = asyncio.create_task(burst.step(hops(model, 50)))
                await asyncio.sleep(0)
                short = asyncio.create_task(live.step(hops(model, 1)))
            await short
            assert not long.done()
            assert notes[2] == ("m", 2, "hop"), "both had a hop"
            start = time.perf_counter()
            assert (await long).shape[-1] == 50
            assert notes[3:] == [("m", 1, "hop")] * 49
            return time.perf_counter() - start

    # All of its hops came at once: they wait together, not one after the other.
    assert anyio.run(main) < 5


def test_models_take_turns():
    notes: list[tuple[str, int, str]] = []
    models = [Noted(name, notes).model for name in "ab"]

    async def main() -> None:
        with Engine(max_wait_ms=0) as engine:
            sessions = [s for m in models for s in await started(engine, m, 2)]
            notes.clear()
            async with held(engine):
                steps = [asyncio.create_task(s.step(hops(models[0], 6))) for s in sessions]
            await asyncio.gather(*steps)

    anyio.run(main)
    assert notes == [("a", 2, "hop"), ("b", 2, "hop")] * 6


def test_newcomers_and_files_take_turns_with_live_hops():
    """A burst of first steps, ends and long steps lets a tick through after each of them."""
    notes: list[tuple[str, int, str]] = []
    model = Noted("m", notes).model

    async def main() -> None:
        with Engine(max_wait_ms=0) as engine:
            live = await started(engine, model, 2)
            file = engine.open(model, hops=4)
            await file.step(hops(model, 1))
            notes.clear()
            async with held(engine):
                steps = [asyncio.create_task(file.step(hops(model, 12)))]
                await asyncio.sleep(0)
                steps += [
                    asyncio.create_task(engine.open(model).step(hops(model, 1))) for _ in range(3)
                ]
                await asyncio.sleep(0)
                steps += [asyncio.create_task(s.step(hops(model, 6))) for s in live]
            await asyncio.gather(*steps)

    with pytest.warns(ResourceWarning):
        anyio.run(main)
    assert sum(lanes for _, lanes, kind in notes if kind == "lead") == 3
    kinds = ["file" if step == ("m", 1, "hop") else step[2] for step in notes]
    assert (kinds.count("file"), kinds.count("hop")) == (3, 6)
    # Each queue has its turn before another has its next one.
    assert all(
        one != "file" or other != "file" for one, other in zip(kinds, kinds[1:], strict=False)
    )
    assert kinds.index("lead") < 3


def test_a_step_that_fails_is_told_to_its_callers_and_nobody_else():
    notes: list[tuple[str, int, str]] = []
    noted = Noted("m", notes)
    other = zoo.model("nano", "encoder", torch.float32)

    async def main() -> None:
        with Engine() as engine:
            first, second = await started(engine, noted.model, 2)
            (bystander,) = await started(engine, other, 1)
            noted.failing = True
            results = await asyncio.gather(
                first.step(hops(noted.model, 1)),
                second.step(hops(noted.model, 1)),
                bystander.step(hops(other, 1)),
                return_exceptions=True,
            )
            assert [type(result) for result in results[:2]] == [RuntimeError] * 2
            assert isinstance(results[2], np.ndarray)
            noted.failing = False
            assert (await first.step(hops(noted.model, 1))).shape[-1] == 1

    anyio.run(main)


def test_of_streams_that_cannot_be_stepped_together_each_is_stepped_alone():
    notes: list[tuple[str, int, str]] = []
    noted = Noted("m", notes)
    plain, crowded = noted.model.step, 2

    def step(x: Tensor, state: Any, *, end: bool = False) -> Any:
        if state is not None and x.shape[0] >= crowded:
            raise RuntimeError("out of memory")
        if state is not None and (x > 10).any():
            raise RuntimeError("cannot take that")
        return plain(x, state, end=end)

    good, bad = hops(noted.model, 1, seed=1), hops(noted.model, 1, seed=2)
    bad[..., 3] = 20
    noted.model.step = step  # type: ignore[method-assign]
    alone = streamenc.Stream(noted.model)
    alone.push(hops(noted.model, 1, seed=0))
    expected = [alone.push(good), alone.push(good)]

    async def main() -> None:
        with Engine() as engine:
            sessions = await started(engine, noted.model, 3)
            first, second, third = sessions
            for session in sessions:
                await session.flush()
                await session.step(hops(noted.model, 1, seed=0))
            async with held(engine):
                calls = [
                    asyncio.create_task(s.step(x))
                    for s, x in ((first, good), (second, bad), (third, good))
                ]
                await asyncio.sleep(0)
            results = await asyncio.gather(*calls, return_exceptions=True)
            assert str(results[1]) == "cannot take that"
            after = [await first.step(good), await third.step(good)]
            for got, y in (
                (results[0], expected[0]),
                (results[2], expected[0]),
                (after[0], expected[1]),
                (after[1], expected[1]),
            ):
                assert torch.equal(joined([got]), y)

    anyio.run(main)


def test_closing_ends_what_a_session_waits_for_and_frees_its_lane():
    model = zoo.model("mimi", "encoder", torch.float32)
    x = hops(model, 30, seed=1)

    async def main() -> Tensor:
        with Engine(max_sessions=3) as engine:
            sessions = await started(engine, model, 3)
            for session in sessions:
                await session.flush()
            parts = [await sessions[2].step(x[..., :240])]
            await asyncio.gather(*(s.step(hops(model, 2)) for s in sessions[:2]))
            async with held(engine):
                waiting = asyncio.create_task(sessions[0].step(hops(model, 20)))
                await asyncio.sleep(0)
                sessions[0].close()
                newcomer = engine.open(model)  # there is a place at once
                first = asyncio.create_task(newcomer.step(hops(model, 2)))
            with pytest.raises(UsageError, match="session is closed"):
                await waiting
            assert (await first).shape[-1] == 2
            parts += [await sessions[2].step(x[..., 240:]), await sessions[2].flush()]
            return joined(parts)

    alone = Stream(model)
    assert torch.equal(anyio.run(main), torch.cat([alone.push(x), alone.flush()], dim=-1))


def test_a_snapshot_of_a_file_session_makes_its_heir_one():
    model = zoo.model("mimi", "encoder", torch.float32)
    x = hops(model, 40, seed=2)

    async def main() -> Tensor:
        with Engine() as engine:
            file = engine.open(model, hops=4)
            first, second = await started(engine, model, 2)
            await asyncio.gather(*(s.step(hops(model, 1)) for s in (first, second)))
            before = await file.step(x[..., :250])
            await first.restore(await file.snapshot())
            assert await second.step(hops(model, 2)) is not None
            return joined([before, await first.step(x[..., 250:]), await first.flush()])

    alone = Stream(model, hops=4)
    assert torch.equal(anyio.run(main), torch.cat([alone.push(x), alone.flush()], dim=-1))


def test_who_does_not_take_its_result_delays_nobody():
    model = zoo.model("mimi", "encoder", torch.float32)

    async def main() -> None:
        with Engine(max_wait_ms=1) as engine:
            slow, live = await started(engine, model, 2)
            forgotten = asyncio.create_task(slow.step(hops(model, 1)))
            for _ in range(20):
                await live.step(hops(model, 1))
            assert engine.statistics().wait.p50_ms < 1000
            assert (await forgotten).shape[-1] == 1

    anyio.run(main)


def test_a_model_on_a_gpu_has_its_lanes_once_and_says_why_it_runs_without_graphs(monkeypatch):
    made: list[IndexedLanes] = []

    class Counted(IndexedLanes):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    class Refused:
        """Plays a GraphedStep whose capture has failed."""

        def __init__(self, model: Model, *, on_demand: bool) -> None:
            assert not on_demand
            self.reasons = {"step": "the capture failed: no"}
            self.after, self.forget = model.after, lambda: None

    monkeypatch.setattr("streamenc.engine.group.IndexedLanes", Counted)
    monkeypatch.setattr("streamenc.engine.group.GraphedStep", Refused)
    model, meter = zoo.model("mimi", "encoder"), Meter()
    monkeypatch.setattr(
        type(model),
        "like",
        SimpleNamespace(
            is_cuda=True,
            device=torch.device("cuda"),
            dtype=torch.float32,
            new_zeros=torch.zeros,
        ),
    )
    group = Group(model, 2, meter)
    assert made == [group.lanes] and group.lanes.freed is not None
    without = (("mimi, audio to codes", "step", "the capture failed: no"),)
    assert meter.statistics(0).without_graphs == without
    assert "no graphs mimi, audio to codes, step: the capture" in str(meter.statistics(0))
    group.lanes.run_by_index.reasons.clear()
    assert meter.statistics(0).without_graphs == ()
