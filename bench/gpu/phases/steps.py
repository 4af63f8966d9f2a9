"""Steps of whole models in time, by number of lanes, and what their time goes into.

A step is 80 ms of all lanes and, for an encoder, its quantisation with 8 codebooks; inputs and
outputs are on the device. All rings are full: an empty one is not read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench import peers, weights
from bench.cpu.codecs import LEAST_AGREEMENT, agreement
from bench.gpu.phase import Found, Phase
from bench.gpu.phases.models import (
    CODEBOOKS,
    ENCODEC,
    HALVES,
    INPUT_SETS,
    MIMI,
    NANO,
    SMALL,
    Case,
    Lanes,
)
from bench.gpu.timing import collect, float32_as, note_clocks, open_device, times_ms
from bench.harness import Row
from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.pages import by_index
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.stream import Stream

UNIT = "ms a step of 80 ms of all lanes"
STEP_MS, BOUND_MS = 80.0, 40.0
LANES = (1, 64, 512, 2048)
PROFILED, KERNELS = (1, 2048), 25
SECONDS, MOST_CALLS = 1.5, 1000
FRAME_TARGET_MS = 1.0
FIRST_TRIED, MOST_LANES = 2048, 1 << 15
OTHERS = (
    *(replace(case, part="decoder") for case in (MIMI, ENCODEC, NANO)),
    ENCODEC,
    NANO,
    *HALVES,
)


class Steps:
    """Steps of a case on so many lanes, one after the other, by graphs or without."""

    def __init__(self, case: Case, model: Model, count: int, *, graphed: bool) -> None:
        self.model, self.lanes = model, Lanes(case, model, count)
        self.graphs = GraphedStep(model) if graphed and model.like.is_cuda else None
        self.codebooks = CODEBOOKS if case.part == "encoder" else None
        self._run = self.graphs or partial(by_index, model)
        self._after = self.graphs.after if self.graphs else model.after

    def __call__(self, index: int) -> Signal:
        x = self.lanes.inputs[index % INPUT_SETS]
        y = self._run(x, self.lanes.pages, self.lanes.everyone)
        return self._after(y, self.codebooks)

    def times_ms(self, seconds: float) -> list[float]:
        """Raises RuntimeError where there was no graph."""
        with torch.inference_mode():
            found = times_ms(self, self.model.like.device, seconds, calls=MOST_CALLS)
        if self.graphs and self.graphs.reasons:
            raise RuntimeError(f"no graph: {self.graphs.reasons}")
        return found

    def end(self) -> None:
        """Gives the graphs' memory back, which outlives them otherwise."""
        if self.graphs:
            self.graphs.forget()


def mimi(phase: Phase) -> None:
    """Mimi encode: by a graph at all numbers of lanes, without one at few, then a profile."""
    device = open_device(phase)
    case, counts, profiled = MIMI, LANES, PROFILED
    if phase.dry:
        case, counts, profiled = SMALL, (1, 3), (1, 3)
    with float32_as("ieee"):
        model = case.load(phase.folder, device)
        for count in counts:
            _timed(phase, case, model, count, graphed=True)
        _timed(phase, case, model, counts[0], graphed=False)
        note_clocks(phase)
        for count in profiled:
            _profiled(phase, case, model, count)
            collect(device)


def others(phase: Phase) -> None:
    """The other sides and codecs, and Mimi in bfloat16, whose codes are not those of float32."""
    device = open_device(phase)
    with float32_as("ieee"):
        for case in (replace(SMALL, part="decoder"),) if phase.dry else OTHERS:
            model = case.load(phase.folder, device)
            for count in (1, 3) if phase.dry else LANES:
                _timed(phase, case, model, count, graphed=True)
    note_clocks(phase)


def _timed(phase: Phase, case: Case, model: Model, count: int, *, graphed: bool) -> Row | None:
    device = model.like.device
    state_bytes = reserved = 0.0

    def call() -> list[float]:
        nonlocal state_bytes, reserved
        before = _reserved(device)
        steps = Steps(case, model, count, graphed=graphed)
        found = steps.times_ms(0.0 if phase.dry else SECONDS)
        state_bytes = steps.lanes.nbytes / count
        reserved = (_reserved(device) - before) / count
        steps.end()
        return found

    def note(row: Row) -> str:
        assert row.p50_ms is not None and row.p99_ms is not None
        said = [
            f"{count * STEP_MS / row.p50_ms:.0f} times real time",
            f"state {state_bytes / 1e6:.2f} MB and in all {reserved / 1e6:.2f} MB a stream",
        ]
        if case == MIMI and graphed and count == 1:
            said.append(f"p50 under {FRAME_TARGET_MS:g} ms: {_met(row.p50_ms < FRAME_TARGET_MS)}")
        if case == MIMI and graphed and count == LANES[-1]:
            said.append(f"p99 under {BOUND_MS:g} ms: {_met(row.p99_ms < BOUND_MS)}")
        return ", ".join(said)

    how = "a graph" if graphed else "no graph"
    name = f"{count:,} lane{'s' * (count > 1)}, {how}"
    row = phase.timed(_title(case), name, call, unit=UNIT, subject=case.title, note=note)
    collect(device)
    return row


def _title(case: Case) -> str:
    return f"{case.title}, {CODEBOOKS} codebooks, full rings"


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def _profiled(phase: Phase, case: Case, model: Model, count: int) -> None:
    """The kernels that steps without a graph spend most time in, which are those of the graph."""
    device, calls = model.like.device, 3
    table = f"{_title(case)}: kernels of a step of {count:,} lane{'s' * (count > 1)}"
    if not phase.allows(table, "a profile", 2):
        return
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    try:
        steps = Steps(case, model, count, graphed=False)
        with torch.inference_mode():
            steps(0)
            with profile(activities=[activity]) as profiled:
                for index in range(calls):
                    steps(index)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
    except RuntimeError as error:  # no memory, or a profiler that may not read the device
        phase.write(table, "a profile", note=f"not made: {error}")
        return
    spent: dict[str, tuple[float, int]] = {}
    for event in profiled.key_averages():
        us = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        before = spent.get(event.key, (0.0, 0))
        spent[event.key] = before[0] + us, before[1] + event.count
    whole = sum(us for us, _ in spent.values()) or 1.0
    launches = sum(n for _, n in spent.values()) / calls
    most = sorted(spent.items(), key=lambda item: -item[1][0])[:KERNELS]
    phase.write(table, "all", **_us(phase, whole / calls, f"{launches:.0f} launches"))
    for place, (name, (us, n)) in enumerate(most, 1):
        said = f"{us / whole:.1%}, {n / calls:.0f} launches, {name[:160]}"
        phase.write(table, f"{place}.", **_us(phase, us / calls, said))


def _us(phase: Phase, us: float, note: str) -> dict[str, Any]:
    # In a dry run operators of the CPU stand there, whose times say nothing.
    return {"value": None if phase.dry else us, "unit": "us", "note": note}


def capacity(phase: Phase) -> None:
    """The most lanes that keep p99 under 40 ms, by doubling and then halving."""
    device = open_device(phase)
    case, count, most = (SMALL, 2, 4) if phase.dry else (MIMI, FIRST_TRIED, MOST_LANES)
    with float32_as("ieee"):
        model = case.load(phase.folder, device)
        held = most_lanes(
            lambda tried: _timed(phase, case, model, tried, graphed=True), count, most
        )
    value = None if phase.dry else held
    phase.write(_title(case), "lanes that keep p99 under 40 ms", value=value, unit="lanes")


def most_lanes(timed: Callable[[int], Row | None], count: int, most: int) -> int:
    """Of those that were tried from `count` on, the most whose p99 is under the bound."""
    most_held, least_failed = 0, most + 1
    while True:
        row = timed(count)
        if row is None or row.p99_ms is None or row.p99_ms >= BOUND_MS:
            least_failed = count
        else:
            most_held = count
        if least_failed > most:
            count = most_held * 2
        else:
            count = (most_held + least_failed) // 2 if most_held else least_failed // 2
        near = least_failed <= most and least_failed - most_held <= max(1, most_held // 10)
        if not 1 <= count <= most or near:
            return most_held


def moshi(phase: Phase) -> None:
    """Mimi beside Kyutai's package, from a wheel beside the rows or from the path."""
    device = open_device(phase)
    table = f"{MIMI.title}, beside moshi"
    for wheel in sorted(phase.rows.parent.glob("moshi-*.whl")):
        sys.path.insert(0, str(wheel))  # pure Python, which is imported as it lies there
    try:
        peer = peers.Moshi(weights.mimi(phase.folder), str(device))
    except ImportError as error:
        said = f"not found ({error}): put moshi-*.whl into {phase.rows.parent}, or on PYTHONPATH"
        phase.write(table, "moshi", note=said)
        return
    with float32_as("ieee"), torch.inference_mode():
        model = MIMI.load(phase.folder, device)
        for count in (1,) if phase.dry else LANES:
            if not phase.allows(table, f"{count:,} lanes", 4):
                continue
            _beside(phase, table, model, peer, count)
            collect(device)


def _beside(phase: Phase, table: str, model: Model, peer: peers.Moshi, count: int) -> None:
    """Codes from the start of a stream, then steps of both, one after the other."""
    steps = Steps(MIMI, model, count, graphed=True)
    seconds = 0.0 if phase.dry else SECONDS

    def same() -> Found:
        stream = Stream(model, batch=count, codebooks=CODEBOOKS)
        theirs = peer.encoder(CODEBOOKS, count)
        pairs = [(stream.push(x), theirs(x)) for x in steps.lanes.inputs]
        ours, others = (torch.cat(side, dim=-1).cpu().numpy() for side in zip(*pairs, strict=True))
        share = agreement(others, ours)
        wrong = "" if share >= LEAST_AGREEMENT else "their codes are others"
        return Found(wrong=wrong, agreement=share)

    phase.check(table, f"{count:,} lanes: codes beside moshi's", same)

    def ours_ms() -> list[float]:
        return steps.times_ms(seconds)

    def theirs_ms() -> list[float]:
        step: Callable[[Tensor], Any] = peer.encoder(CODEBOOKS, count)
        inputs = steps.lanes.inputs
        return times_ms(lambda index: step(inputs[index % INPUT_SETS]), model.like.device, seconds)

    ours = phase.timed(table, f"{count:,} lanes, streamenc", ours_ms, unit=UNIT, subject=table)

    def note(row: Row) -> str:
        known = ours is not None and ours.p50_ms and row.p50_ms
        return f"{row.p50_ms / ours.p50_ms:.2f} times streamenc's" if known else ""  # type: ignore[operator, union-attr]

    phase.timed(table, f"{count:,} lanes, moshi", theirs_ms, unit=UNIT, subject=table, note=note)


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
