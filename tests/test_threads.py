"""Short steps compute on one thread, whoever calls, and nobody else in the process notices."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import streamenc
from streamenc import threads
from streamenc.engine.engine import Engine
from streamenc.errors import UsageError
from streamenc.pipeline.builder import Pipeline

CLIP = Path(__file__).parents[1] / "examples" / "data" / "speech.flac"
NOISE = np.random.default_rng(0).normal(0, 0.1, 16000).astype(np.float32)
pytestmark = pytest.mark.skipif(
    threads._library() is None, reason="torch's OpenMP is not to be found here"
)


def mkl_threads() -> str:
    """MKL's number in this thread, as torch tells it; "" where it has no MKL."""
    return torch.__config__.parallel_info().partition("mkl_get_max_threads() :")[2].split("\n")[0]


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str, int, int]]:
    """For each step: its threads, MKL's, those of a thread that was there, and of a new one."""
    noted = []
    elsewhere = ThreadPoolExecutor(1)
    assert elsewhere.submit(torch.get_num_threads).result() == 3
    mel = type(streamenc.load("mel").encoder)
    step = mel.step

    def noting(*args, **named):  # type: ignore[no-untyped-def]
        new: list[int] = []
        thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        old = elsewhere.submit(torch.get_num_threads).result()
        noted.append((torch.get_num_threads(), mkl_threads().strip(), old, *new))
        return step(*args, **named)

    monkeypatch.setattr(mel, "step", noting)
    return noted


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("hops", "wanted"), [(1, 1), (100, 3)])
def test_a_stream_in_the_callers_thread(hops: int, wanted: int, seen: list) -> None:
    before = mkl_threads().strip()
    stream = streamenc.load("mel").stream(hops=hops)
    stream.push(NOISE)
    assert torch.get_num_threads() == 3
    assert mkl_threads().strip() == before
    stream.flush()
    assert torch.get_num_threads() == 3
    assert {numbers[0] for numbers in seen} == {wanted}
    assert {numbers[1] for numbers in seen} == {str(wanted) if before else ""}
    assert {numbers[2:] for numbers in seen} == {(3, 3)}


@pytest.mark.usefixtures("three_threads")
def test_an_error_gives_the_threads_back() -> None:
    class Broken(streamenc.load("mel").encoder.__class__):  # type: ignore[misc]
        def step(self, *args, **named):  # type: ignore[no-untyped-def]
            raise MemoryError("no room")

    model = streamenc.load("mel").encoder
    model.__class__ = Broken
    with pytest.raises(MemoryError):
        streamenc.Stream(model).push(NOISE)
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("sessions", [1, 2])
def test_sessions_of_an_engine(sessions: int, seen: list) -> None:
    model = streamenc.load("mel").encoder

    async def go() -> None:
        with Engine() as engine:
            opened = [engine.open(model) for _ in range(sessions)]
            for _ in range(3):
                await asyncio.gather(*(session.step(NOISE[:1600]) for session in opened))
            for session in opened:
                await session.flush()
                session.close()

    asyncio.run(go())
    assert {numbers[0] for numbers in seen} == {1}
    assert {numbers[2:] for numbers in seen} == {(3, 3)}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(("hops", "wanted"), [(1, 1), (None, 3)])
def test_a_pipeline(hops: int | None, wanted: int, seen: list) -> None:
    with Pipeline() as pipeline:
        source = pipeline.source("in", str(CLIP))
        encoded = pipeline.encode("mel", streamenc.load("mel"), source, hops=hops)
        pipeline.sink("out", "null:", encoded)
        pipeline.graph.run_blocking(handle_signals=False)
    assert {numbers[0] for numbers in seen} == {wanted}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_program_may_say_how_many(monkeypatch: pytest.MonkeyPatch, seen: list) -> None:
    monkeypatch.setattr(threads, "_count", 1)
    threads.set_short_step_threads(2)
    streamenc.load("mel").stream().push(NOISE)
    assert {numbers[0] for numbers in seen} == {2}
    with pytest.raises(UsageError, match="1 or more"):
        threads.set_short_step_threads(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has none")
def test_a_fork_of_a_thread_that_computed_with_others_does_not_wait_for_them() -> None:
    program = """
        import os, numpy, streamenc, torch
        torch.set_num_threads(2)
        codec = streamenc.load()
        sound = numpy.random.default_rng(0).normal(0, 0.1, 320_000).astype("f4")
        codec.encode(sound)
        if not (child := os.fork()):
            codec.encode(sound)
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        try:
            assert parent.communicate(timeout=20)[0].split() == ["7", "2"]
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)  # the child, if it waits for ever
