from __future__ import annotations

import contextvars
import gc
import threading
import time

import anyio
import pytest

from streamenc.graph.worker import Worker, WorkerAbandoned


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def await_no_thread(name: str) -> None:
    deadline = time.monotonic() + 10
    while threads(name) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads(name)


def test_calls_run_in_order_in_one_thread_that_close_ends() -> None:
    async def main() -> None:
        worker = Worker("worker-order")
        worker.close()
        seen: list[tuple[int, int]] = []
        async with anyio.create_task_group() as group:
            for i in range(5):
                group.start_soon(worker.call, lambda i=i: seen.append((i, threading.get_ident())))
        assert [i for i, _ in seen] == list(range(5))
        assert len({ident for _, ident in seen}) == 1
        assert seen[0][1] != threading.get_ident()
        worker.close()
        worker.close()
        assert await worker.call(lambda: 7) == 7
        worker.close()

    anyio.run(main)
    await_no_thread("worker-order")


def test_errors_and_context_pass() -> None:
    async def main() -> None:
        worker = Worker("worker-errors")
        name = contextvars.ContextVar[str]("name")
        name.set("here")
        assert await worker.call(name.get) == "here"
        with pytest.raises(ZeroDivisionError):
            await worker.call(lambda: 1 // 0)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await worker.call(lambda: next(iter(())))
        worker.close()

    anyio.run(main)


def test_a_cancelled_caller_waits_for_its_call() -> None:
    async def main() -> None:
        worker = Worker("worker-cancel")
        done = threading.Event()

        def work() -> None:
            time.sleep(0.2)
            done.set()

        with anyio.move_on_after(0.01):
            await worker.call(work)
            await anyio.sleep_forever()
        assert done.is_set()
        worker.close()

    anyio.run(main)


def test_abandon_leaves_a_hung_call_behind() -> None:
    release = threading.Event()

    async def main() -> None:
        worker = Worker("worker-hung")
        assert not worker.abandon()  # nothing under way

        async def call() -> None:
            with pytest.raises(WorkerAbandoned):
                await worker.call(release.wait)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await anyio.sleep(0.05)
            assert worker.abandon()
        with pytest.raises(WorkerAbandoned):
            await worker.call(lambda: None)

    anyio.run(main)
    assert threads("worker-hung") == 1
    release.set()  # it returns after its loop was closed: nobody is disturbed
    await_no_thread("worker-hung")


def test_a_forgotten_worker_ends_its_thread() -> None:
    async def main() -> None:
        await Worker("worker-forgotten").call(lambda: None)

    anyio.run(main)
    gc.collect()
    await_no_thread("worker-forgotten")
