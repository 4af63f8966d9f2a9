"""What is made before streams are live: graphs on a GPU, first steps anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch

from streamenc.engine import group as group_module
from streamenc.engine import scheduler
from streamenc.engine.cudagraph import Generation, GraphedStep, Recorder
from streamenc.engine.engine import Engine
from streamenc.engine.group import Group
from streamenc.engine.indexed import IndexedLanes
from streamenc.errors import InputError, UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.fakecuda import FakeCuda, fake_cuda


@pytest.fixture
def gpu(monkeypatch) -> Iterator[FakeCuda]:
    """Groups step by graphs of a fake device."""
    generation = Generation(Recorder(torch.device("cuda", 0)))

    class OnGpu(Group):
        alone = False

        def __init__(self, model, capacity, meter):
            super().__init__(model, capacity, meter)
            graphs = self._graphs = GraphedStep(model, generation, on_demand=False)
            self.lanes = IndexedLanes(model, capacity, graphs, graphs.after, graphs.forget)
            meter.runs_graphs(model, graphs.reasons)

    monkeypatch.setattr(scheduler, "Group", OnGpu)
    with fake_cuda() as cuda:
        yield cuda
        assert not cuda.harm


async def live(engine: Engine, model: Model, count: int, codebooks: int | None = None) -> None:
    """Streams at the same time, each of which gives what it gives alone."""
    spec = model.spec
    signals = [zoo.signal(model, spec.lead + 3 * spec.hop, seed=seed) for seed in range(count)]

    async def one(signal: torch.Tensor) -> None:
        with engine.open(model, codebooks=codebooks) as session:
            ours = [await session.step(zoo.cut(signal, 0, spec.lead + spec.hop))]
            ours.append(await session.step(zoo.cut(signal, spec.lead + spec.hop, 1 << 20)))
            stream = Stream(model, codebooks=codebooks)
            wanted = stream.push(signal)
            for index, y in enumerate((wanted, stream.flush())):
                given = torch.cat([*map(torch.as_tensor, ours)], dim=2)
                assert torch.equal(given.to(y.dtype), y)
                if not index:
                    ours = [await session.flush()]

    await asyncio.gather(*map(one, signals))


def test_a_warm_engine_captures_nothing_while_streams_are_live(gpu):
    model = zoo.model("nano", "encoder")

    async def go() -> None:
        with Engine(max_sessions=8, max_wait_ms=50) as engine:
            await engine.warm(model, codebooks=3, sessions=3)
            assert len(gpu.captured_on) == 2 * 3  # of 1, 2 and 4 lanes
            await live(engine, model, 3, codebooks=3)
            await live(engine, model, 1, codebooks=2)  # a session later, none open in between
            assert len(gpu.captured_on) == 2 * 3 and gpu.handles == 1
            assert not engine.statistics().without_graphs
            await engine.warm(model, codebooks=3, sessions=3)
            assert len(gpu.captured_on) == 2 * 3
            await engine.warm(model, codebooks=3)
            assert len(gpu.captured_on) == 2 * 4  # and of 8

    asyncio.run(go())


def test_an_engine_that_is_not_warm_steps_without_graphs_and_says_so(gpu):
    model = zoo.model("nano", "encoder")

    async def go() -> None:
        with Engine(max_sessions=8, max_wait_ms=50) as engine:
            await live(engine, model, 2)
            assert not gpu.captured_on
            told = engine.statistics().without_graphs
            assert {why.part for why in told} == {"step", "after"}
            assert all("call Engine.warm" in why.reason for why in told)

    asyncio.run(go())


def test_open_sessions_go_on_while_an_engine_warms(gpu):
    model, other = zoo.model("nano", "encoder"), zoo.model("mimi", "encoder")

    async def go() -> None:
        with Engine(max_sessions=64, max_wait_ms=1) as engine:
            with engine.open(model) as session:
                await session.step(zoo.signal(model, model.spec.lead))
                warm = asyncio.ensure_future(engine.warm(other))
                steps = 0
                while not warm.done():
                    await session.step(zoo.signal(model, model.spec.hop))
                    steps += 1
                await warm
            assert steps > 3 and len(gpu.captured_on) == 2 * 7

    asyncio.run(go())


def test_on_a_cpu_first_steps_are_made_and_the_group_stays(monkeypatch):
    model = zoo.model("mimi", "encoder")
    warmed = []
    monkeypatch.setattr(model, "warm_up", lambda hops=1: warmed.append(hops))
    with Engine(max_sessions=4) as engine:
        engine.warm_blocking(model, codebooks=2)
        assert warmed and not engine.statistics().without_graphs
        asyncio.run(live(engine, model, 3))


@pytest.mark.parametrize(("name", "side"), zoo.CASES, ids=["-".join(case) for case in zoo.CASES])
def test_every_model_can_be_warmed(name, side):
    model = zoo.model(name, side)
    stream = group_module._begun(model, None)
    if stream is None:
        assert model.spec.input.axes or model.spec.input.kind == "text"
    else:
        assert stream.ready and stream.emitted


def test_what_cannot_be_warmed_is_refused():
    model = zoo.model("mimi", "encoder")
    engine = Engine(max_sessions=2)
    with engine:
        with pytest.raises(UsageError, match="sessions=0"):
            engine.warm_blocking(model, sessions=0)
        with pytest.raises(InputError, match="99 were asked for"):
            engine.warm_blocking(model, codebooks=99)
    with pytest.raises(UsageError, match="closed"):
        engine.warm_blocking(model)


def test_in_an_event_loop_one_awaits():
    async def notebook() -> None:
        with Engine() as engine, pytest.raises(UsageError, match=r"`await engine\.warm"):
            engine.warm_blocking(zoo.model("mimi", "encoder"))

    asyncio.run(notebook())
