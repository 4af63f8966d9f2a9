"""Threads that help a program: the same bits whatever they do, and nothing left behind."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("numba", reason="needs the extra cpu")
from numba import njit

from streamenc import state as states
from streamenc.compiled import team as team_module
from streamenc.compiled.busycores import Pace
from streamenc.compiled.compiledmodel import CompiledModel
from streamenc.compiled.team import Team, team
from streamenc.models.mimi import MimiDecoder, MimiEncoder, MimiShape
from streamenc.state import State
from streamenc_kernels.compiled.instruction import Kind
from streamenc_kernels.compiled.interpreter import (
    COUNT_BITS,
    HELPERS,
    MASK,
    NUMBER_BITS,
    PATIENCE,
    REPORT,
    TICKET,
    may_hand_in,
)
from streamenc_kernels.compiled.intrinsics import add_number, load_number
from tests.support.programs import randomized

SMALL = {
    "hidden_size": 128,
    "num_filters": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 520,
    "sliding_window": 20,
    "codebook_dim": 32,
    "codebook_size": 16,
    "vector_quantization_hidden_dimension": 32,
    "upsample_groups": 128,
}
STEPS = 25  # so that the ring of 20 positions goes round


class Always(Pace):
    """Others help in each step, whatever that brings."""

    def together(self, *asked: Any) -> bool:
        return True


@cache
def model(part: str) -> CompiledModel:
    shape = MimiShape(SMALL)
    small = MimiEncoder(shape, "moshi") if part == "encoder" else MimiDecoder(shape)
    randomized(small)
    small.prepare()
    return CompiledModel(small)


@cache
def inputs(part: str, lanes: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (lanes, 1, 1920) if part == "encoder" else (lanes, 32, 1)
    compiled = model(part)
    if part == "encoder":
        return [torch.randn(shape, generator=generator) for _ in range(STEPS)]
    codes = [torch.randint(0, 16, shape, generator=generator) for _ in range(STEPS)]
    with torch.inference_mode():
        return [compiled.before(x) for x in codes]


@torch.inference_mode()
def stepped(part: str, lanes: int, crew: Team, threads: int) -> tuple[Tensor, State]:
    """All steps of a stream: the first one in torch, the others as programs."""
    compiled, (first, *others) = model(part), inputs(part, lanes)
    y, state = compiled.model.step(first, None)
    outputs = [y]
    program = compiled._programs[first.shape[2]]
    for x in others:
        y, state = program.step(x, state, crew, threads)
        outputs.append(y)
    return torch.cat(outputs, dim=2), state


@cache
def expected(part: str, lanes: int) -> tuple[Tensor, State]:
    return stepped(part, lanes, Team(), 1)


def assert_expected(part: str, lanes: int, got: tuple[Tensor, State]) -> None:
    y, state = expected(part, lanes)
    assert torch.equal(got[0], y)
    for ours, theirs in zip(states.leaves(got[1]), states.leaves(state), strict=True):
        assert torch.equal(ours, theirs)


def reported(crew: Team) -> SimpleNamespace:
    """Of the last run: its pieces, those that others made, and those that they were late with."""
    pieces, helped, late = crew._board[REPORT // 8 :][:3].tolist()
    return SimpleNamespace(pieces=pieces, helped=helped, late=late)


@pytest.fixture
def crew() -> Iterator[Team]:
    made = Team()
    made.pace = Always()
    yield made
    made.close()
    assert not any(helper.is_alive() for helper in made._helpers)


def until(condition: Any, seconds: float = 30.0) -> None:
    done = condition()  # which may compile, the first time
    end = time.monotonic() + seconds
    while not done:
        assert time.monotonic() < end
        time.sleep(0.002)
        done = condition()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("lanes, threads", [(1, 2), (3, 3), (1, 5)])
def test_the_same_bits_with_more_threads(part: str, lanes: int, threads: int, crew: Team) -> None:
    helped = 0

    def some_helped() -> bool:
        nonlocal helped
        assert_expected(part, lanes, stepped(part, lanes, crew, threads))
        helped += reported(crew).helped
        return helped > 0

    until(some_helped)
    assert len(crew._helpers) == threads - 1


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_same_bits_where_nobody_is_waited_for(part: str, crew: Team) -> None:
    stepped(part, 1, crew, 4)
    crew._board[PATIENCE // 8] = 0
    late = 0

    def some_late() -> bool:
        nonlocal late
        assert_expected(part, 1, stepped(part, 1, crew, 4))
        late += reported(crew).late
        return late > 0

    until(some_late)


@njit(nogil=True)
def claim(board: int, looks: int) -> int:
    """A ticket for a piece, 0 where there was none."""
    for _ in range(looks):
        ticket = load_number(board + TICKET)
        if (ticket & MASK) < ((ticket >> COUNT_BITS) & MASK):
            ticket = add_number(board + TICKET, 1)
            if (ticket & MASK) < ((ticket >> COUNT_BITS) & MASK):
                return ticket
    return 0


@njit(nogil=True)
def is_in_time(board: int, ticket: int) -> bool:
    return may_hand_in(board, ticket >> NUMBER_BITS, ticket & MASK)


def test_a_helper_that_never_comes_back(crew: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    """It claims a piece and is stopped: the piece is made without it, which it learns later."""
    monkeypatch.setattr(crew, "_gather", lambda count: None)
    board = crew._board.ctypes.data
    claim(board, 0)
    is_in_time(board, -1)
    assert len(inputs("encoder", 1)) == STEPS
    crew._board[PATIENCE // 8] = 1000
    tickets: list[int] = []
    stopped = threading.Event()

    def steal() -> None:
        # As helpers do before they claim anything.
        crew._board[HELPERS // 8] = 1
        while not (tickets or stopped.is_set()):
            if ticket := claim(board, 10_000):
                tickets.append(ticket)

    def one_stolen() -> bool:
        assert_expected("encoder", 1, stepped("encoder", 1, crew, 2))
        return bool(tickets)

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        until(one_stolen)
    finally:
        stopped.set()
        thief.join()
    assert not is_in_time(board, tickets[0])
    # What it may still read stays until it is back.
    assert len(crew._kept) == 1
    stepped("encoder", 1, crew, 2)
    assert len(crew._kept) == 1
    crew._board[HELPERS // 8] = 0
    stepped("encoder", 1, crew, 2)
    assert not crew._kept


def test_a_team_with_stuck_helpers_does_without(
    crew: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew._kept = [None] * team_module.MOST_KEPT
    crew._board[HELPERS // 8] = 1
    gathered: list[int] = []
    monkeypatch.setattr(crew, "_gather", gathered.append)
    assert_expected("encoder", 1, stepped("encoder", 1, crew, 2))
    assert not gathered
    crew._board[HELPERS // 8] = 0
    assert_expected("encoder", 1, stepped("encoder", 1, crew, 2))
    assert gathered == [1] * (STEPS - 1)


def test_programs_at_the_same_time(crew: Team) -> None:
    """One of them has the helpers, the others run alone."""
    parts = ["encoder", "decoder"] * 2
    for part in parts:
        expected(part, 1)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            for part, got in zip(
                parts, threads.map(lambda part: stepped(part, 1, crew, 2), parts), strict=True
            ):
                assert_expected(part, 1, got)


def test_helpers_sleep_between_steps(crew: Team) -> None:
    stepped("encoder", 1, crew, 3)
    until(lambda: len(crew._asleep) == 2)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_an_interrupt_leaves_the_team_as_it_was(
    crew: Team, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crew, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stepped("encoder", 1, crew, 2)
    assert not crew._active and not crew._running.locked()
    assert_expected("encoder", 1, stepped("encoder", 1, crew, 2))


def test_a_team_is_the_processs_own() -> None:
    assert model("encoder")._team is team()


def test_what_is_shared_keeps_its_results_aside() -> None:
    """All kinds of these programs that helpers take part in."""
    kinds = {
        Kind(int(kind))
        for part in ("encoder", "decoder")
        for program in model(part)._programs.values()
        for kind in program._ops[:, 0]
    }
    assert {Kind.PRODUCT, Kind.DOT, Kind.ATTEND} <= kinds


@pytest.mark.slow
def test_under_load_it_is_as_fast_as_one_thread() -> None:
    """Three busy processes on the cores that there are; blocks of steps in turn."""
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    crews = {1: Team(), 2: Team()}
    taken: dict[int, list[float]] = {1: [], 2: []}
    stepped("encoder", 6, crews[1], 1)

    def no_slower() -> bool:
        for threads, crew in crews.items():
            start = time.perf_counter()
            stepped("encoder", 6, crew, threads)
            taken[threads].append(time.perf_counter() - start)
        return len(taken[1]) >= 8 and (
            statistics.median(taken[2]) < 1.1 * statistics.median(taken[1])
            and statistics.mean(taken[2]) < 1.1 * statistics.mean(taken[1])
        )

    try:
        until(no_slower, 60)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
        crews[2].close()


SCRIPT = """
import os, sys, warnings
import torch
from tests.compiled import test_team as t

warnings.simplefilter("ignore", DeprecationWarning)
crew = t.team()
crew.pace = t.Always()
t.assert_expected("encoder", 1, t.stepped("encoder", 1, crew, 2))
assert len(crew._helpers) == 1
(program,) = t.model("encoder")._programs.values()
program._turn.acquire()  # as another thread may at that moment
child = os.fork()
if child == 0:
    assert not crew._helpers
    crew.pace = t.Always()
    t.assert_expected("encoder", 1, t.stepped("encoder", 1, crew, 2))
    assert len(crew._helpers) == 1
    sys.exit(7)
program._turn.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
t.assert_expected("encoder", 1, t.stepped("encoder", 1, crew, 2))
print("done")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no forks")
def test_a_fork_has_helpers_of_its_own_and_all_end() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
