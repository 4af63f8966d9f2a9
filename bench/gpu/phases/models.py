"""Models on a device: latents against the CPU, graphs against eager steps, buckets.

Weights are random and of the published sizes, but for nano's own. Latents are compared, not codes:
TF32 moves latents by 1e-3 and so one code of a hundred, which a share of codes hardly shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import streamenc
from bench import signals, weights
from bench.cpu.codecs import agreement
from bench.gpu.phase import Found, Phase
from bench.gpu.rows import CHECKS
from bench.gpu.timing import (
    FLOAT32_LIMIT,
    collect,
    compared,
    float32_as,
    open_device,
    relative_error,
)
from streamenc import state as states
from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.lanes import eagerly
from streamenc.engine.pages import Pages, by_index
from streamenc.models.model import Model
from streamenc.registry import Part
from streamenc.state import State
from streamenc.stream import Stream

CODEBOOKS = 8
CHECKED_STEPS, CHECKED_LANES = 12, 3
BUCKETS, DRY_BUCKETS = (8, 64, 512), (2, 3)
HALF_LIMIT = 5e-2
INPUT_SETS = 4
# Past the end of every ring: Mimi's hold 251 positions, two of them a step.
FIRST_POSITION = 1000
# Of numbers with which rings are filled, as large as keys and values of random weights are.
RING_SCALE = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """A model, one way.

    hops     Of a step of 80 ms.
    weights  Gives the name to load, with a folder for what has to be written.
    """

    name: str
    part: Part
    hops: int
    weights: Callable[[Path], str]
    dtype: torch.dtype = torch.float32

    @property
    def title(self) -> str:
        way = "encode" if self.part == "encoder" else "decode"
        return f"{self.name} {way}, {str(self.dtype).removeprefix('torch.')}"

    def load(self, folder: Path, device: torch.device) -> Model:
        codec = streamenc.load(
            self.weights(folder),
            part=self.part,
            device=device,
            dtype=self.dtype,
            backend="torch",
        )
        return codec.encoder if self.part == "encoder" else codec.decoder

    def signal(self, model: Model, lanes: int, items: int) -> Tensor:
        """(lanes, channels, items) on the CPU: another place of a voice, or random codes."""
        spec = model.spec
        if spec.input.kind == "codes":
            generator = torch.Generator().manual_seed(lanes)
            shape = (lanes, CODEBOOKS, items)
            return torch.randint(spec.codebook_size, shape, generator=generator)
        rate = int(spec.input.rate)
        voice = torch.from_numpy(signals.chirp_and_noise(items + 4 * rate, rate))
        starts = torch.arange(lanes) * 977 % (4 * rate)
        return torch.stack([voice[start : start + items] for start in starts.tolist()])[:, None]


def _mimi(folder: Path) -> str:
    return f"mimi:{weights.mimi(folder)}"


def _mimi_small(folder: Path) -> str:
    return f"mimi:{weights.mimi(folder, small=True)}"


def _encodec(folder: Path) -> str:
    return f"encodec:{weights.encodec(folder)}"


def _nano(folder: Path) -> str:
    return "nano"


MIMI = Case("Mimi", "encoder", 1, _mimi)
ENCODEC = Case("EnCodec 24 kHz", "encoder", 6, _encodec)
NANO = Case("nano", "encoder", 4, _nano)
CHECKED_CASES = (
    MIMI,
    NANO,
    ENCODEC,
    *(replace(case, part="decoder") for case in (MIMI, NANO, ENCODEC)),
)
HALVES = (replace(MIMI, dtype=torch.bfloat16),)
# With rings, which nano has not.
SMALL = Case("a small Mimi", "encoder", 1, _mimi_small)
DRY_CASES = (SMALL, replace(SMALL, part="decoder"), NANO)


class Lanes:
    """Streams of a case past their first step, and the inputs of later ones, on the device.

    full    As if the streams ran for long: all rings are full of numbers, and positions past their
            ends, another for each lane.
    pages   Their states, as an engine holds them on a GPU; `everyone`: the places of all lanes.
    inputs  A few, to take in turn: what `before` makes of a step for all lanes.
    """

    def __init__(self, case: Case, model: Model, count: int, *, full: bool = True) -> None:
        spec, device = model.spec, model.like.device
        size = case.hops * spec.hop
        with torch.inference_mode():
            _, one = model.step(_entered(model, case.signal(model, 1, spec.lead)), None)
            self.pages = Pages(model, one, count)
            same = states.map_state(lambda leaf: leaf.expand(count, *leaf.shape[1:]), one)
            self.pages.put(range(count), same)
            if full:
                fill(self.pages)
            # No more of them than differ are drawn: the last ones are the first ones again.
            some = case.signal(model, min(count, 64), INPUT_SETS * size)
            entered = _entered(model, some)
            rows = torch.arange(count, device=device) % entered.shape[0]
            self.inputs = [part[rows] for part in entered.split(size, dim=2)]
        self.everyone = self.pages.places(range(count), count).to(device)
        self.count = count

    def state(self) -> State:
        """A copy, as one batch."""
        forms = [self.pages.lane(index) for index in range(self.count)]
        every = [list(states.leaves(form)) for form in forms]
        merged = iter([torch.cat(leaf) for leaf in zip(*every, strict=True)])
        return states.map_state(lambda leaf: next(merged), forms[0])

    @property
    def nbytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in self.pages.tensors)


def fill(pages: Pages) -> None:
    """Rings are what has four axes, positions what counts in whole numbers."""
    for index, held in enumerate(pages.tensors):
        if held.dtype == torch.int64:
            lane = torch.arange(len(held), device=held.device)
            held.add_((FIRST_POSITION + 37 * lane).view(-1, *[1] * (held.ndim - 1)))
        elif held.ndim == 4:
            generator = torch.Generator(held.device).manual_seed(index)
            held.normal_(0, RING_SCALE, generator=generator)


def check(phase: Phase) -> None:
    """The phase `latents`."""
    device = open_device(phase)
    for case in DRY_CASES if phase.dry else (*CHECKED_CASES, *HALVES):
        reference = case.load(phase.folder, torch.device("cpu"))
        model = case.load(phase.folder, device)
        if case.dtype == torch.float32:
            _check_latents(phase, case, model, reference)
        if case.part == "encoder":
            with float32_as("ieee"):
                _check_steps(phase, case, model, reference)
        del model, reference
        collect(device)


def _check_latents(phase: Phase, case: Case, model: Model, reference: Model) -> None:
    """Streams as users run them, with torch's switches as they are and all turned to TF32; and what
    bare products in TF32 would give, to show that the check sees them."""
    steps = 2 if phase.dry else CHECKED_STEPS
    items = model.spec.lead + steps * case.hops * model.spec.hop
    x = case.signal(model, CHECKED_LANES, items)
    wanted = latents(case, reference, x)

    def against_the_cpu() -> Found:
        ours = latents(case, model, x)
        return compared(ours, wanted, agreement=_same_codes(case, model, ours, reference, wanted))

    def bare() -> Tensor:
        with torch.inference_mode():
            y, state = model.step(_entered(model, x[..., : model.spec.lead]), None)
            outputs = [y]
            for part in x[..., model.spec.lead :].split(case.hops * model.spec.hop, dim=-1):
                y, state = model.step(_entered(model, part), state)
                outputs.append(y)
            return torch.cat(outputs, dim=2).cpu()

    name = f"{case.title}: a stream against the CPU"
    phase.check(case.title, name, against_the_cpu)
    with float32_as("tf32"):
        phase.check(case.title, f"{name}, where the program asked for TF32", against_the_cpu)
        if phase.allows(CHECKS, f"{case.title}: bare TF32", 2):
            error = relative_error(bare(), wanted)
            note = "for comparison: the checks see it" if error > FLOAT32_LIMIT else "no TF32 here"
            phase.write(CHECKS, f"{case.title}: bare steps in TF32", error=error, note=note)


def latents(case: Case, model: Model, x: Tensor) -> Tensor:
    """What a stream's steps give, before they are quantised; x is what users push."""
    stream = Stream(model, batch=x.shape[0], hops=case.hops)
    model.after = lambda y, codebooks=None: y  # type: ignore[method-assign]
    try:
        chunks = x.to(model.like.device).split(case.hops * model.spec.hop, dim=-1)
        outputs = [_tensor(stream.push(chunk)) for chunk in chunks]
        # What a chunk gives nothing for has the shape of codes.
        return torch.cat([y for y in outputs if y.shape[2]], dim=2).cpu()
    finally:
        del model.after


def _same_codes(
    case: Case, model: Model, ours: Tensor, reference: Model, wanted: Tensor
) -> float | None:
    if case.part != "encoder":
        return None
    with torch.inference_mode(), float32_as("ieee"):
        found = _tensor(model.after(ours.to(model.like.device), CODEBOOKS)).cpu()
        return agreement(found.numpy(), _tensor(reference.after(wanted, CODEBOOKS)).numpy())


def _check_steps(phase: Phase, case: Case, model: Model, reference: Model) -> None:
    """Graphs, and where all is in float32 also full rings, and buckets."""
    limit = FLOAT32_LIMIT if case.dtype == torch.float32 else HALF_LIMIT
    phase.check(
        case.title,
        f"{case.title}: a graph against eager steps, full rings, lanes idle",
        lambda: graph_is_eager(case, model, limit),
    )
    if case.dtype != torch.float32:
        return
    phase.check(
        case.title,
        f"{case.title}: past the rings' ends against the CPU",
        lambda: _full_rings(case, model, reference),
    )
    for count in DRY_BUCKETS if phase.dry else BUCKETS:
        phase.check(
            case.title,
            f"{case.title}: a stream among {count} lanes against it alone",
            lambda count=count: _in_bucket(case, model, count),  # type: ignore[misc]
        )
        collect(model.like.device)


def graph_is_eager(case: Case, model: Model, limit: float = FLOAT32_LIMIT) -> Found:
    """Steps by graphs, some lanes idle, give what eager steps give, and codes likewise."""
    ours, theirs = (Lanes(case, model, CHECKED_LANES) for _ in range(2))
    graphs = GraphedStep(model)
    errors, same = [], []
    with torch.inference_mode():
        for step in range(2 * INPUT_SETS):
            x = ours.inputs[step % INPUT_SETS]
            ready = [lane for lane in range(CHECKED_LANES) if lane != step % (CHECKED_LANES + 1)]
            places = ours.pages.places(ready, CHECKED_LANES).to(x.device)
            y = graphs(x, ours.pages, places)
            wanted = by_index(model, x, theirs.pages, places)
            errors.append(relative_error(y[: len(ready)], wanted[: len(ready)]))
            if case.part == "encoder":
                codes = _tensor(graphs.after(wanted, CODEBOOKS)).cpu()
                others = _tensor(model.after(wanted, CODEBOOKS)).cpu()
                same.append(agreement(codes.numpy(), others.numpy()))
        pairs = zip(states.leaves(ours.state()), states.leaves(theirs.state()), strict=True)
        errors += [relative_error(x, y) for x, y in pairs if x.is_floating_point()]
    reasons = dict(graphs.reasons)
    graphs.forget()
    if model.like.is_cuda and reasons:
        return Found(wrong=f"no graph: {reasons}")
    if same and min(same) < 1:
        return Found(wrong=f"{min(same):.4f} of the codes by a graph equal those without")
    note = "to the bit" if max(errors) == 0 else ""
    return Found(max(errors), limit, note=note)


def _full_rings(case: Case, model: Model, reference: Model) -> Found:
    """Steps from one state with full rings, by index on the device and plainly on the CPU."""
    there, here = Lanes(case, reference, CHECKED_LANES), Lanes(case, model, CHECKED_LANES)
    everyone = torch.ones(CHECKED_LANES, dtype=torch.bool)
    errors = []
    with torch.inference_mode():
        state = there.state()
        moved = states.map_state(lambda leaf: leaf.to(model.like.device), state)
        here.pages.put(range(CHECKED_LANES), moved)
        for x, same in zip(there.inputs, here.inputs, strict=True):
            wanted = eagerly(reference, x, state, everyone)
            y = by_index(model, same, here.pages, here.everyone)
            errors.append(relative_error(y.cpu(), wanted))
    return Found(max(errors), FLOAT32_LIMIT)


def _in_bucket(case: Case, model: Model, count: int) -> Found:
    """The first of many lanes, each with another input, and the same stream alone."""
    many, alone = Lanes(case, model, count), Lanes(case, model, 1)
    errors, same = [], []
    with torch.inference_mode():
        alone.pages.put([0], many.pages.lane(0))
        for x in many.inputs:
            y = by_index(model, x, many.pages, many.everyone)[:1]
            wanted = by_index(model, x[:1], alone.pages, alone.everyone)
            errors.append(relative_error(y, wanted))
            if case.part == "encoder":
                codes = [_tensor(model.after(one, CODEBOOKS)).cpu() for one in (y, wanted)]
                same.append(agreement(codes[0].numpy(), codes[1].numpy()))
    note = "to the bit" if max(errors) == 0 else ""
    share = sum(same) / len(same) if same else None
    return Found(max(errors), FLOAT32_LIMIT, note=note, agreement=share)


def _entered(model: Model, x: Tensor) -> Tensor:
    """As a stream takes a chunk in: codes as they are, audio in the model's dtype."""
    like = model.like
    x = x.to(like.device) if model.spec.input.kind == "codes" else x.to(like)
    return model.before(x)


def _tensor(signal: Any) -> Tensor:
    assert isinstance(signal, Tensor)
    return signal
