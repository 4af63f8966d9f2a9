"""Engine and Session: interleaved sessions, their bounds and end, and what a step costs on top."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time

import anyio
import pytest
import torch

from streamenc.engine.session import Engine
from streamenc.errors import InputError, SnapshotError, UsageError
from streamenc.models.base import Model
from streamenc.stream import Stream
from tests.models import zoo


@pytest.fixture
def model() -> Model:
    return zoo.model("mimi", "encoder", torch.float32)


def solo(model: Model, x: torch.Tensor) -> torch.Tensor:
    stream = Stream(model)
    return torch.cat([stream.push(x), stream.flush()], dim=-1)


def test_interleaved_sessions_equal_solo_streams(model):
    signals = [zoo.signal(model, 300 + 31 * i, seed=i) for i in range(5)]

    async def live(engine: Engine, x: torch.Tensor, size: int) -> torch.Tensor:
        session = engine.open(model)
        parts = []
        for part in x.split(size, dim=-1):
            parts.append(await session.step(part))
            await asyncio.sleep(0)
        parts.append(await session.flush())
        session.close()
        return torch.cat(parts, dim=-1)

    async def main() -> list[torch.Tensor]:
        with Engine() as engine:
            outputs = await asyncio.gather(
                *(live(engine, x, 17 + 10 * i) for i, x in enumerate(signals))
            )
            assert engine.sessions == 0
            return outputs

    for x, codes in zip(signals, anyio.run(main), strict=True):
        assert torch.equal(codes, solo(model, x))


def test_steps_run_on_one_thread_in_order(model):
    async def main() -> None:
        with Engine() as engine:
            threads, order = set(), []

            def note(number: int) -> None:
                threads.add(threading.current_thread().name)
                order.append(number)

            await asyncio.gather(*(engine.run(note, number) for number in range(50)))
            assert order == list(range(50))
            assert len(threads) == 1 and threading.current_thread().name not in threads

    anyio.run(main)


def test_max_sessions(model):
    async def main() -> None:
        with Engine(max_sessions=2) as engine:
            first, _ = engine.open(model), engine.open(model)
            with pytest.raises(UsageError, match="all 2 sessions"):
                engine.open(model)
            first.close()
            first.close()
            assert engine.sessions == 1
            third = engine.open(model)
            assert (await third.step(zoo.signal(model, 24))).shape == (1, 6, 1)
            with pytest.raises(UsageError, match="session is closed"):
                await first.step(zoo.signal(model, 24))

    anyio.run(main)


def test_a_closed_engine_refuses_steps(model):
    async def main() -> None:
        engine = Engine()
        session = engine.open(model)
        await session.step(zoo.signal(model, 24))
        engine.close()
        engine.close()
        assert engine.sessions == 0
        with pytest.raises(UsageError, match="engine is closed"):
            await session.step(zoo.signal(model, 24))
        with pytest.raises(UsageError, match="engine is closed"):
            engine.open(model)

    anyio.run(main)


def test_close_waits_for_the_step_in_flight_and_tells_the_rest(model):
    async def main() -> None:
        engine = Engine()
        begun, release, done = threading.Event(), threading.Event(), []

        def slow() -> None:
            begun.set()
            release.wait(30)
            done.append(1)

        running = asyncio.ensure_future(engine.run(slow))
        waiting = asyncio.ensure_future(engine.run(done.append, 2))
        await asyncio.to_thread(begun.wait, 30)
        threading.Timer(0.05, release.set).start()
        await engine.aclose()
        await running
        with pytest.raises(UsageError, match="closed"):
            await waiting
        assert done == [1]

    anyio.run(main)


def test_errors_come_to_the_caller_and_the_session_goes_on(model):
    x = zoo.signal(model, 300)

    async def main() -> torch.Tensor:
        with Engine() as engine:
            session, bystander = engine.open(model), engine.open(model, codebooks=2)
            parts = [await session.step(x[..., :150])]
            with pytest.raises(InputError, match="finite"):
                await session.step(torch.full((1, 1, 9), float("nan")))
            with pytest.raises(SnapshotError):
                await session.restore(b"nonsense")
            assert (await bystander.step(x)).shape == (1, 2, 12)
            return torch.cat([*parts, await session.step(x[..., 150:]), await session.flush()], -1)

    assert torch.equal(anyio.run(main), solo(model, x))


def test_snapshot_moves_a_session_to_another_engine(model):
    x = zoo.signal(model, 300)

    async def main() -> torch.Tensor:
        with Engine() as here, Engine() as there:
            first, second = here.open(model), there.open(model)
            first.codebooks = 3
            before = await first.step(x[..., :100])
            await second.restore(await first.snapshot())
            assert second.codebooks == 3
            rest = [await second.step(x[..., 100:]), await second.flush()]
            return torch.cat([before, *rest], dim=-1)

    assert torch.equal(anyio.run(main), solo(model, x)[:, :3])


def test_what_a_session_step_costs_over_the_bare_step(model):
    """Printed; the bound is loose, as other work runs on the same machine."""
    x = zoo.signal(model, 24)

    async def main() -> tuple[float, float]:
        stream, through, bare = Stream(model), [], []
        with Engine() as engine:
            session = engine.open(model)
            for _ in range(60):
                start = time.perf_counter()
                await session.step(x)
                middle = time.perf_counter()
                stream.push(x)
                through.append(middle - start)
                bare.append(time.perf_counter() - middle)
        return statistics.median(through), statistics.median(bare)

    through, bare = anyio.run(main)
    print(f"a step takes {bare * 1e6:.0f} us, through a session {through * 1e6:.0f} us")
    assert through - bare < 0.02


def test_a_cancelled_step_still_delivers_with_the_next_call(model):
    x = zoo.signal(model, 60 * model.spec.hop, seed=3)
    first, second = x[..., : 40 * model.spec.hop], x[..., 40 * model.spec.hop :]

    async def main() -> torch.Tensor:
        with Engine() as engine, engine.open(model) as session:
            blocked = threading.Event()
            holding = asyncio.create_task(engine.run(blocked.wait))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.step(first), 0.05)
            blocked.set()
            await holding
            parts = [await session.step(second), await session.flush()]
            return torch.cat(parts, dim=-1)

    assert torch.equal(anyio.run(main), solo(model, x))


def test_codebooks_set_during_a_step_wait_for_the_next(model):
    x = zoo.signal(model, 400 * model.spec.hop, seed=4)

    async def main() -> None:
        with Engine() as engine, engine.open(model) as session:
            step = asyncio.create_task(session.step(x))
            await asyncio.sleep(0.01)
            session.codebooks = 1
            codes = await step
            assert codes.shape[1] in (1, model.spec.output.channels)
            assert codes.shape[2] == 400
            assert (await session.step(x)).shape[1] == 1

    anyio.run(main)


def test_a_refused_chunk_of_a_cancelled_step_spoils_nothing(model):
    x = zoo.signal(model, 30 * model.spec.hop, seed=5)

    async def main() -> torch.Tensor:
        with Engine() as engine, engine.open(model) as session:
            blocked = threading.Event()
            holding = asyncio.create_task(engine.run(blocked.wait))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(session.step(torch.full_like(x, float("nan"))), 0.05)
            blocked.set()
            await holding
            return torch.cat([await session.step(x), await session.flush()], dim=-1)

    assert torch.equal(anyio.run(main), solo(model, x))
