"""Engine and Session: interleaved sessions, their bounds and end, and what a step costs on top."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import torch

from streamenc import state as states
from streamenc.engine.engine import Engine
from streamenc.engine.exchange.door import Answer
from streamenc.engine.exchange.loopoutlet import LoopOutlet
from streamenc.engine.seats import Request, Seat
from streamenc.engine.session import Session
from streamenc.errors import EngineFull, InputError, SnapshotError, UsageError
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.answers import joined
from tests.support.profile import examples


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
        return joined(parts)

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
            with pytest.raises(EngineFull, match="all 2 sessions") as refused:
                engine.open(model)
            assert isinstance(refused.value, UsageError) and refused.value.max_sessions == 2
            first.close()
            first.close()
            assert engine.sessions == 1
            third = engine.open(model)
            assert (await third.step(zoo.signal(model, 24))).shape == (1, 6, 1)
            with pytest.raises(UsageError, match="session is closed"):
                await first.step(zoo.signal(model, 24))
            statistics = engine.statistics()
            assert (statistics.sessions, statistics.opened, statistics.refused) == (2, 3, 1)

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
            return joined([*parts, await session.step(x[..., 150:]), await session.flush()])

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
            return joined([before, *rest])

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
            return joined(parts)

    assert torch.equal(anyio.run(main), solo(model, x))


def test_a_session_takes_no_more_calls_than_anybody_waits_for(model, monkeypatch):
    monkeypatch.setattr("streamenc.engine.session.MAX_CALLS", 20)
    x = zoo.signal(model, 40 * model.spec.hop, seed=4)

    async def main() -> torch.Tensor:
        with Engine() as engine, engine.open(model) as session:
            blocked = threading.Event()
            holding = asyncio.create_task(engine.run(blocked.wait))
            calls = [asyncio.create_task(session.step(p)) for p in x.split(model.spec.hop, dim=-1)]
            await asyncio.sleep(0.05)
            blocked.set()
            told = await asyncio.gather(*calls, return_exceptions=True)
            await holding
            for error in told[20:]:
                assert isinstance(error, UsageError) and "20 calls that wait" in str(error)
            return joined([*told[:20], await session.flush()])

    assert torch.equal(anyio.run(main), solo(model, x[..., : 20 * model.spec.hop]))


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
            return joined([await session.step(x), await session.flush()])

    assert torch.equal(anyio.run(main), solo(model, x))


def test_a_step_cancelled_after_its_answer_came_loses_nothing(model, monkeypatch):
    """Both within one turn of the event loop, before the caller could take the answer."""
    x = zoo.signal(model, 6 * model.spec.hop, seed=6)
    first, second = x.split(3 * model.spec.hop, dim=-1)
    settle = LoopOutlet.settle

    async def main() -> torch.Tensor:
        with Engine() as engine, engine.open(model) as session:
            step = asyncio.ensure_future(session.step(first))

            def settled(outlet: LoopOutlet, answers: list[Answer]) -> None:
                settle(outlet, answers)
                step.cancel()

            monkeypatch.setattr(LoopOutlet, "settle", settled)
            with pytest.raises(asyncio.CancelledError):
                await step
            monkeypatch.undo()
            return joined([await session.step(second), await session.flush()])

    assert torch.equal(anyio.run(main), solo(model, x))


@pytest.mark.parametrize(
    "wrong", [{"max_sessions": 0}, {"max_wait_ms": -1}, {"idle_timeout_seconds": 0}]
)
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(UsageError, match="wanted at least 1"):
        Engine(**wrong)


def test_a_session_that_nobody_calls_is_closed_and_says_so(model):
    x = zoo.signal(model, 24)

    async def main() -> None:
        with Engine(max_sessions=3, idle_timeout_seconds=0.3) as engine:
            dead, silent, live = (engine.open(model) for _ in range(3))
            await asyncio.gather(dead.step(x), live.step(x))
            await asyncio.gather(dead.step(x), live.step(x))
            for _ in range(12):
                await live.step(x)
                await asyncio.sleep(0.05)
            assert engine.sessions == 1 and engine.statistics().timed_out == 2
            for session in (dead, silent):
                with pytest.raises(UsageError, match=r"closed after 0\.3 s without a call"):
                    await session.step(x)
                session.close()
            for _ in range(2):  # their places are free
                engine.open(model).close()
            assert (await live.step(x)).shape[-1] == 1

    anyio.run(main)


def test_a_step_that_takes_long_is_no_idleness(model):
    async def main() -> None:
        with Engine(idle_timeout_seconds=0.1) as engine, engine.open(model) as session:
            holding = asyncio.create_task(engine.run(time.sleep, 0.5))
            await asyncio.sleep(0)
            assert (await session.step(zoo.signal(model, 24))).shape[-1] == 1
            await holding

    anyio.run(main)


def test_a_session_that_is_dropped_gives_its_place_back(model):
    async def main() -> None:
        with Engine(max_sessions=1) as engine:
            session = engine.open(model)
            await session.step(zoo.signal(model, 24))
            with pytest.warns(ResourceWarning, match="never closed"):
                del session
                gc.collect()
            assert engine.sessions == 0 and engine.statistics().dropped == 1
            with engine.open(model) as session:
                await session.step(zoo.signal(model, 24))
            assert not engine._scheduler._groups or await engine.run(int) == 0

    anyio.run(main)


def test_an_engine_that_is_dropped_ends_its_worker(model):
    threads = threading.active_count()
    engine = Engine()
    assert threading.active_count() == threads + 1
    del engine
    gc.collect()
    assert threading.active_count() == threads


def test_an_engine_that_nobody_closes_lets_python_exit():
    program = (
        "from streamenc.engine.engine import Engine; import asyncio; engine = Engine(); "
        "print(asyncio.run(engine.run(sum, [1, 2])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system forks no processes")
def test_a_fork_hears_that_the_worker_stayed_behind(model):
    x = zoo.signal(model, 300)

    def asked(call: Callable[[], object]) -> str:
        try:
            call()
        except UsageError as error:
            return str(error)
        return "nothing"

    with Engine() as engine, engine.open(model) as session:
        anyio.run(session.step, x)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:  # nothing of the tests' own may run here: it says what it heard, and is gone
            signal.alarm(30)
            said = [
                asked(lambda: anyio.run(session.step, x)),
                asked(lambda: anyio.run(engine.run, int)),
                asked(lambda: engine.open(model)),
                asked(session.close),
                asked(engine.close),
            ]
            os.write(writing, "\n".join(said).encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read().split("\n")
        assert os.waitpid(child, 0)[1] == 0
        wanted = (
            f"this engine works in process {os.getpid()}, and process {child} is a fork of it, "
            "which its thread did not come along to: open another engine after the fork, or start "
            "processes by spawn (multiprocessing.get_context('spawn'))"
        )
        assert said == [wanted] * 3 + ["nothing"] * 2
        anyio.run(session.step, x)  # here it goes on


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_clients_that_connect_and_die_leave_nothing(model):
    """Beside a live one, whose lane is the neighbour's; some are cut off in the middle of a step,
    some are dropped without being closed."""
    hop = zoo.signal(model, 24)
    x = zoo.signal(model, 24 * 3000, seed=7)
    rounds = examples(125, fast=40)

    async def client(engine: Engine, number: int) -> None:
        session = engine.open(model)
        await session.step(hop)
        await session.step(zoo.signal(model, 30, seed=number))
        if number % 3 == 0:
            step = asyncio.ensure_future(session.step(zoo.signal(model, 24 * 5)))
            await asyncio.sleep(0)
            step.cancel()
        if number % 5:
            session.close()

    async def main() -> list[torch.Tensor]:
        with Engine(max_sessions=9, max_wait_ms=0) as engine, engine.open(model) as live:
            outputs, at, resident, tasks = [], 0, [], len(asyncio.all_tasks())
            threads = threading.active_count()
            for round_ in range(rounds):
                numbers = range(8 * round_, 8 * round_ + 8)
                clients = asyncio.gather(*(client(engine, number) for number in numbers))
                while not clients.done():
                    outputs.append(await live.step(x[..., at : at + 24]))
                    at += 24
                await clients
                if round_ in (24, rounds - 1):
                    gc.collect()
                    resident.append(resident_bytes())
            assert engine.statistics().opened == 8 * rounds + 1 and engine.sessions == 1
            await engine.run(int)
            (group,) = engine._scheduler._groups.values()
            assert len(group.seats) == 1 and not group.ready and not engine._scheduler._alone
            assert len(group.lanes) == states.nbytes(group.lanes._pool) == 0
            assert len(asyncio.all_tasks()) == tasks and threading.active_count() == threads
            kinds = [type(thing) for thing in gc.get_objects()]
            assert kinds.count(Session) == kinds.count(Seat) == 1
            assert kinds.count(Request) <= 2
            print(f"resident memory grew by {(resident[1] - resident[0]) / 1e6:.1f} MB")
            assert resident[1] - resident[0] < 8e6
            return joined(outputs)

    codes = anyio.run(main)
    assert torch.equal(codes, Stream(model).push(x[..., : 24 * codes.shape[-1]]))
