"""Video on a device: steps of Cosmos encoders, checked first, then timed by lanes.

A step is 4 or 8 frames of all lanes, with its quantisation where the model has codes; frames and
latents are on the device. Attention along time sees 16 latents. A stream's frames have one size,
so that a step can be a graph here; elsewhere the engine steps video without graphs, which would
hold memory for each size. Weights are random and of the published sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import streamenc
from bench import signals, weights
from bench.cpu.codecs import agreement
from bench.gpu.phase import Found, Phase
from bench.gpu.timing import (
    Peaks,
    call_ms,
    collect,
    float32_as,
    note_clocks,
    open_device,
    relative_error,
    times_ms,
)
from bench.harness import Row
from streamenc import state as states
from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.pages import Pages, by_index
from streamenc.models.model import Model
from streamenc.models.signal import Signal

UNIT = "ms per frame of all lanes"
CONTEXT = 16
LANES = (1, 4)
INPUT_SETS = 2
CASE_SECONDS = 1.0
# Of latents, relative: another device adds up in another order; bfloat16 was 1.2e-2 off on a CPU.
DEVICE_TOLERANCE, HALF_TOLERANCE = 1e-4, 3e-2
GRAPH_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
LEAST_CODES = 0.99
TARGET_MS = 15.0
KERNELS = 8
HALF = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Case:
    """An encoder at one size; `small`: with few channels, for a dry run."""

    kind: str
    height: int
    width: int
    dtype: torch.dtype = torch.float32
    small: bool = False

    @property
    def title(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Cosmos {self.kind} encode, {self.width} x {self.height}, {dtype}"

    @property
    def has_target(self) -> bool:
        return (self.kind, self.height, self.dtype) == ("DV4x8x8", 720, HALF)

    def load(self, folder: Path, device: torch.device, dtype: torch.dtype | None = None) -> Model:
        where = weights.cosmos(folder, self.kind, small=self.small, part="encoder")
        model = streamenc.load(
            where,
            part="encoder",
            device=device,
            dtype=dtype or self.dtype,
            mode="window",
            context=CONTEXT,
        ).encoder
        model.uncapturable = ""  # all frames have one size here
        return model

    def frames(self, lanes: int, count: int) -> Tensor:
        """(lanes, 3, count, height, width), bytes on the CPU: each lane sees another image."""
        one = torch.from_numpy(_images(count, self.height, self.width))
        return torch.stack([one.roll(37 * lane, dims=-1) for lane in range(lanes)])


CASES = (
    Case("DV4x8x8", 720, 1280, HALF),
    Case("DV4x8x8", 720, 1280),
    Case("CV8x8x8", 720, 1280, HALF),
    Case("CV8x8x8", 720, 1280),
    Case("DV4x8x8", 256, 256, HALF),
    Case("DV4x8x8", 256, 256),
    Case("CV8x8x8", 256, 256, HALF),
    Case("CV8x8x8", 256, 256),
)
DRY_CASES = (
    Case("DV4x8x8", 16, 24, HALF, small=True),
    Case("DV4x8x8", 16, 24, small=True),
    Case("CV8x8x8", 16, 16, small=True),
)


@cache
def _images(count: int, height: int, width: int) -> Any:
    return signals.video(count, height, width)


class VideoLanes:
    """Streams of a case past their first frame, and the inputs of later steps, on the device."""

    def __init__(self, case: Case, model: Model, count: int) -> None:
        spec, device = model.spec, model.like.device
        frames = case.frames(count, spec.lead + INPUT_SETS * spec.hop)
        with torch.inference_mode():
            entered = _entered(model, frames)
            first, *rest = entered.split([spec.lead, *[spec.hop] * INPUT_SETS], dim=2)
            self.first, self.state = model.step(first, None)
            self.inputs = [part.clone() for part in rest]
            self.pages = Pages(model, states.lane(self.state, 0), count)
            self.pages.put(range(count), self.state)
        self.everyone = self.pages.places(range(count), count).to(device)


def run(phase: Phase) -> None:
    """The phase `video`: each case is checked, then timed, the one with a target also profiled."""
    device = open_device(phase)
    peaks = Peaks.known(phase)
    with float32_as("ieee"):
        for case in DRY_CASES if phase.dry else CASES:
            title = case.title
            phase.check(title, f"{title}: latents", partial(check, case, phase.folder, device))
            phase.check(
                title, f"{title}: by a graph", partial(check_graph, case, phase.folder, device)
            )
            collect(device)
            if phase.allows(title, "times", CASE_SECONDS):
                _time(phase, case, device, peaks)
    note_clocks(phase)


def check(case: Case, folder: Path, device: torch.device) -> Found:
    """Eager steps: float32 against the CPU, latents and codes, and bfloat16 against float32 on the
    device."""
    half = case.dtype != torch.float32
    where = device if half else torch.device("cpu")
    # Two steps of large images would keep a CPU busy for long.
    sets = 1 if case.height * case.width > 1 << 18 else INPUT_SETS
    wanted, wanted_codes = _latents(case.load(folder, where, torch.float32), case, sets)
    found, found_codes = _latents(case.load(folder, device), case, sets)
    error = relative_error(found, wanted)
    limit = HALF_TOLERANCE if half else DEVICE_TOLERANCE
    if half or wanted_codes.is_floating_point():
        return Found(error, limit)
    same = agreement(found_codes.numpy(), wanted_codes.numpy())
    wrong = "" if same >= LEAST_CODES else f"{same:.4f} of the codes equal those of the CPU"
    return Found(error, limit, wrong=wrong, agreement=same)


def _latents(model: Model, case: Case, sets: int) -> tuple[Tensor, Tensor]:
    lanes = VideoLanes(case, model, 1)
    outputs, state = [lanes.first], lanes.state
    with torch.inference_mode():
        for x in lanes.inputs[:sets]:
            y, state = model.step(x, state)
            outputs.append(y)
        latents = torch.cat(outputs, dim=2)
        return latents.cpu(), _tensor(model.after(latents)).cpu()


def check_graph(case: Case, folder: Path, device: torch.device) -> Found:
    """Steps by graphs, a lane idle, give what eager steps give."""
    count = 2
    model = case.load(folder, device)
    ours, theirs = (VideoLanes(case, model, count) for _ in range(2))
    graphs = GraphedStep(model)
    errors = []
    with torch.inference_mode():
        for step in range(2 * INPUT_SETS):
            x = ours.inputs[step % INPUT_SETS]
            ready = [lane for lane in range(count) if lane != step % (count + 1)]
            places = ours.pages.places(ready, count).to(device)
            y = graphs(x, ours.pages, places)
            wanted = by_index(model, x, theirs.pages, places)
            errors.append(relative_error(y[: len(ready)], wanted[: len(ready)]))
            if not torch.equal(_tensor(graphs.after(wanted)), _tensor(model.after(wanted))):
                return Found(wrong="codes by a graph are not those without")
    if device.type == "cuda" and graphs.reasons:
        return Found(wrong=f"no graph: {graphs.reasons}")
    return Found(max(errors), GRAPH_TOLERANCES[case.dtype])


def _time(phase: Phase, case: Case, device: torch.device, peaks: Peaks) -> None:
    """By number of lanes, with graphs and without; what a step's time goes into."""
    model = case.load(phase.folder, device)
    for count in (1, 2) if phase.dry else LANES:
        for graphed in (True, False):
            _timed(phase, case, model, count, graphed)
    flops = _flops(case, model)
    rate = peaks.float32_per_second if case.dtype == torch.float32 else None
    known = f"{1e3 * flops / rate:.2f} ms at the rate that was measured" if rate else ""
    phase.write(case.title, "products of a lane, a frame", value=flops, unit="FLOP", note=known)
    if case.has_target or case.small:
        _where_time_goes(phase, case, model)


def _timed(phase: Phase, case: Case, model: Model, count: int, graphed: bool) -> None:
    device, hop = model.like.device, model.spec.hop
    known: dict[str, float] = {}

    def call() -> list[float]:
        lanes = VideoLanes(case, model, count)
        graphs = GraphedStep(model) if graphed and model.like.is_cuda else None
        run: Any = graphs or partial(by_index, model)
        after = graphs.after if graphs else model.after

        def step(index: int) -> Signal:
            return after(run(lanes.inputs[index % INPUT_SETS], lanes.pages, lanes.everyone))

        with torch.inference_mode():
            found = times_ms(step, device, 0.0 if phase.dry else CASE_SECONDS, warmup=3)
        if graphs and graphs.reasons:
            raise RuntimeError(f"no graph: {graphs.reasons}")
        known["state"] = states.nbytes(lanes.state) / count / 1e6
        return [ms / hop for ms in found]

    def note(row: Row) -> str:
        assert row.p50_ms is not None
        said = f"{1e3 * count / row.p50_ms:.0f} frames/s, state {known['state']:.1f} MB a lane"
        if case.has_target and count == 1:
            met = "met" if row.p50_ms < TARGET_MS else "MISSED"
            said += f", p50 under {TARGET_MS:g} ms: {met}"
        return said

    name = f"{count} lane{'s' * (count > 1)}, {'a graph' if graphed else 'no graph'}"
    phase.timed(case.title, name, call, unit=UNIT, subject=case.title, note=note)
    collect(device)


def _flops(case: Case, model: Model) -> float:
    """Of products, for each frame of a lane."""
    lanes = VideoLanes(case, model, 1)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.step(lanes.inputs[0], lanes.state)
    return counter.get_total_flops() / model.spec.hop


def _where_time_goes(phase: Phase, case: Case, model: Model) -> None:
    """The kernels that an eager step of one lane spends most time in."""
    device = model.like.device
    lanes = VideoLanes(case, model, 1)
    activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU

    def step() -> None:
        with torch.inference_mode():
            model.after(by_index(model, lanes.inputs[0], lanes.pages, lanes.everyone))

    step()
    with profile(activities=[activity]) as profiled:
        call_ms(step, device)
    spent: dict[str, float] = {}
    for event in profiled.key_averages():
        us = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        spent[event.key] = spent.get(event.key, 0.0) + us
    total = sum(spent.values()) or 1.0
    most = sorted(spent, key=lambda name: -spent[name])[:KERNELS]
    table = f"{case.title}: kernels of a step of 1 lane"
    for place, name in enumerate(most, 1):
        # In a dry run operators of the CPU stand there, whose times say nothing.
        value = None if phase.dry else spent[name]
        note = f"{spent[name] / total:.0%}, {name[:160]}"
        phase.write(table, f"{place}.", value=value, unit="us", note=note)


def _entered(model: Model, frames: Tensor) -> Tensor:
    """As a stream takes bytes in."""
    like = model.like
    return model.before(frames.to(like.device).to(like.dtype) / 127.5 - 1)


def _tensor(signal: Any) -> Tensor:
    assert isinstance(signal, Tensor)
    return signal
