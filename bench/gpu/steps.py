"""Steps of whole models on a device: checked first, then timed by number of lanes.

A step is 80 ms of all lanes and, for an encoder, its quantisation with 8 codebooks; inputs and
outputs are on the device. Weights are random and of the published sizes, but for nano's own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import streamenc
from bench import peers, signals, weights
from bench.cpu.codecs import LEAST_AGREEMENT, agreement
from bench.gpu.kernels import verdict
from bench.gpu.roofline import Budget, relative_error, times_ms
from bench.harness import Row, Table
from streamenc import state as states
from streamenc.engine.cudagraph import GraphedStep
from streamenc.engine.lanes import eagerly
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.registry import Part
from streamenc.stream import Stream

UNIT = "ms per 80 ms step of all lanes"
STEP_MS, BOUND_MS = 80.0, 40.0
CODEBOOKS = 8
LANES = (1, 8, 64, 512, 2048)
CHECKED_STEPS, CHECKED_LANES = 20, 3
# Between the orders in which a graph's and an eager step's libraries add up.
GRAPH_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
INPUT_SETS = 4
CASE_SECONDS, COSTLY_SECONDS = 2.0, 6.0
MOST_LANES = 1 << 15
FRAME_TARGET_MS, LIVE_TARGET, MOSHI_TARGET = 1.0, 2000, 5.0


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
            self.weights(folder), part=self.part, device=device, dtype=self.dtype
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


def _encodec(folder: Path) -> str:
    return f"encodec:{weights.encodec(folder)}"


def _nano(folder: Path) -> str:
    return "nano"


MIMI = Case("Mimi", "encoder", 1, _mimi)
HALF = torch.bfloat16
CASES = (
    Case("EnCodec 24 kHz", "encoder", 6, _encodec),
    Case("nano", "encoder", 4, _nano),
    Case("Mimi", "decoder", 1, _mimi),
    Case("EnCodec 24 kHz", "encoder", 6, _encodec, HALF),
    Case("nano", "encoder", 4, _nano, HALF),
    Case("EnCodec 24 kHz", "decoder", 6, _encodec),
    Case("nano", "decoder", 4, _nano),
)
MIMI_HALF = Case("Mimi", "encoder", 1, _mimi, HALF)


class Lanes:
    """Streams of a case past their first step, and the inputs of later ones, on the device.

    inputs  A few, to take in turn: what `before` makes of 80 ms for all lanes.
    """

    def __init__(self, case: Case, model: Model, count: int) -> None:
        spec, device = model.spec, model.like.device
        size = case.hops * spec.hop
        with torch.inference_mode():
            one = case.signal(model, 1, spec.lead)
            _, state = model.step(_entered(model, one), None)
            self.state = states.map_state(lambda leaf: leaf.repeat_interleave(count, 0), state)
            # No more of them than differ are drawn: the last ones are the first ones again.
            some = case.signal(model, min(count, 64), INPUT_SETS * size).to(device)
            entered = _entered(model, some)
            rows = torch.arange(count, device=device) % entered.shape[0]
            self.inputs = [part[rows] for part in entered.split(size, dim=2)]
        self.everyone = torch.ones(count, dtype=torch.bool, device=device)


def check_model(case: Case, folder: Path, device: torch.device, *, steps: int) -> str:
    """What is wrong; "" where streams in a batch give on `device` what they give on the CPU."""
    outputs: list[Tensor] = []
    for where in (torch.device("cpu"), device):
        model = case.load(folder, where)
        codebooks = CODEBOOKS if case.part == "encoder" else None
        stream = Stream(model, batch=CHECKED_LANES, hops=case.hops, codebooks=codebooks)
        items = model.spec.lead + steps * case.hops * model.spec.hop
        x = case.signal(model, CHECKED_LANES, items).to(where)
        chunks = x.split(case.hops * model.spec.hop, dim=-1)
        outputs.append(torch.cat([_tensor(stream.push(chunk)) for chunk in chunks], dim=-1).cpu())
    equal = agreement(outputs[1].numpy(), outputs[0].numpy())
    return "" if equal >= LEAST_AGREEMENT else f"{equal:.4f} of its output equals that of the CPU"


def check_graph(case: Case, folder: Path, device: torch.device) -> str:
    """What is wrong; "" where steps by graphs, some lanes idle, give what eager steps give."""
    model = case.load(folder, device)
    lanes = Lanes(case, model, CHECKED_LANES)
    ours, theirs = states.clone(lanes.state), states.clone(lanes.state)
    graphs = GraphedStep(model)
    lane = torch.arange(CHECKED_LANES, device=device)
    with torch.inference_mode():
        for step in range(2 * INPUT_SETS):
            x = lanes.inputs[step % INPUT_SETS]
            active = (lane % CHECKED_LANES != step % (CHECKED_LANES + 1)).clone()
            y, wanted = graphs(x, ours, active), eagerly(model, x, theirs, active)
            error = relative_error(y[active], wanted[active])
            if error > GRAPH_TOLERANCES[case.dtype]:
                return f"step {step} by a graph is off by {error:.1e}"
            if case.part == "encoder":
                codes = _tensor(graphs.after(wanted, CODEBOOKS)).cpu()
                same = agreement(
                    codes.numpy(), _tensor(model.after(wanted, CODEBOOKS)).cpu().numpy()
                )
                if same < LEAST_AGREEMENT:
                    return f"{same:.4f} of the codes by a graph equal those without"
    if device.type == "cuda" and graphs.reasons:
        return f"no graph: {graphs.reasons}"
    return ""


def steps_table(
    case: Case,
    folder: Path,
    device: torch.device,
    budget: Budget,
    lane_counts: tuple[int, ...],
    *,
    seconds: float = CASE_SECONDS,
) -> Table:
    """Times by number of lanes, with graphs and without, and memory of a stream."""
    model = case.load(folder, device)
    rows: list[Row] = []
    for count in lane_counts:
        for graphed in (True, False):
            name = f"{count:,} lanes, {'a graph' if graphed else 'no graph'}"
            if budget.allows(name, 0 if not rows else min(COSTLY_SECONDS, 3 * seconds)):
                rows.append(_steps_row(name, case, model, count, graphed, seconds))
    return Table(f"{case.title}, {CODEBOOKS} codebooks", UNIT, rows, facts=_skipped(budget))


def _steps_row(
    name: str, case: Case, model: Model, count: int, graphed: bool, seconds: float
) -> Row:
    device = model.like.device
    before = _reserved(device)
    try:
        found, state_bytes, reasons = _run(case, model, count, graphed, seconds)
        after = _reserved(device)
    except torch.OutOfMemoryError:
        return Row(name, note="not timed: out of memory")
    finally:
        _collect(device)
    if graphed and reasons and device.type == "cuda":
        return Row(name, note=f"not timed: {reasons}")
    note = (
        f"{count * STEP_MS / median(found):.0f} times real time, state {state_bytes / 1e6:.2f} MB"
    )
    if device.type == "cuda":
        note += f", in all {(after - before) / count / 1e6:.2f} MB a stream"
    if graphed and count == 1 and case.title == MIMI.title:
        note += f", target p50 < 1 ms: {verdict(median(found) < FRAME_TARGET_MS)}"
    return Row.of(name, found, note=note)


def _run(
    case: Case, model: Model, count: int, graphed: bool, seconds: float
) -> tuple[list[float], float, dict[str, str]]:
    """Times of a step, bytes of state of a lane, and why there was no graph."""
    lanes = Lanes(case, model, count)
    graphs = GraphedStep(model) if graphed and model.like.is_cuda else None
    run = graphs or partial(eagerly, model)
    after = graphs.after if graphs else model.after
    codebooks = CODEBOOKS if case.part == "encoder" else None

    def step(index: int) -> Signal:
        y = run(lanes.inputs[index % INPUT_SETS], lanes.state, lanes.everyone)
        return after(y, codebooks)

    with torch.inference_mode():
        found = times_ms(step, model.like.device, seconds)
    return found, states.nbytes(lanes.state) / count, graphs.reasons if graphs else {}


def capacity_table(
    case: Case,
    folder: Path,
    device: torch.device,
    budget: Budget,
    *,
    start: int = 2048,
    most: int = MOST_LANES,
    seconds: float = CASE_SECONDS,
) -> Table:
    """The most lanes that were found to keep p99 under 40 ms, by doubling and then halving."""
    model = case.load(folder, device)
    rows: dict[int, Row] = {}

    def holds(count: int) -> bool:
        row = _steps_row(f"{count:,} lanes", case, model, count, True, seconds)
        rows[count] = row
        return row.p99_ms is not None and row.p99_ms < BOUND_MS

    most_held, least_failed, count = 0, most + 1, start
    while budget.allows(f"{count:,} lanes", min(COSTLY_SECONDS, 3 * seconds)):
        if holds(count):
            most_held = count
        else:
            least_failed = count
        if least_failed > most:
            count = most_held * 2
        elif not most_held:
            count = least_failed // 2
        else:
            count = (most_held + least_failed) // 2
        near = least_failed <= most and least_failed - most_held <= max(1, most_held // 10)
        if not 1 <= count <= most or near:
            break
    facts: dict[str, Any] = {"streams at p99 under 40 ms": f"{most_held:,}"}
    if least_failed <= most:
        facts["fewest that were tried and did not hold"] = f"{least_failed:,}"
    if case.title == MIMI.title:
        facts["target of 2,000 live encodes"] = verdict(most_held >= LIVE_TARGET)
    ordered = [rows[count] for count in sorted(rows)]
    return Table(f"{case.title}, lanes that keep up", UNIT, ordered, facts=facts | _skipped(budget))


def moshi_table(
    folder: Path,
    device: torch.device,
    budget: Budget,
    lane_counts: tuple[int, ...],
    *,
    seconds: float = CASE_SECONDS,
) -> Table:
    """Mimi's steps beside those of Kyutai's package, in turns, where that is installed."""
    title = f"{MIMI.title}, beside moshi"
    peer = peers.start(partial(peers.Moshi, device=str(device)), weights.mimi(folder))
    if isinstance(peer, str):
        return Table(title, UNIT, [Row("moshi", note=peer)])
    model = MIMI.load(folder, device)
    rows: list[Row] = []
    best: dict[str, float] = {"streamenc": 0.0, "moshi": 0.0}
    for count in lane_counts:
        if not budget.allows(f"{count:,} lanes", 0 if not rows else 4 * seconds):
            continue
        lanes = Lanes(MIMI, model, count)
        everyone, graphs = lanes.everyone, GraphedStep(model) if model.like.is_cuda else None
        run, after = graphs or partial(eagerly, model), graphs.after if graphs else model.after
        try:
            with torch.inference_mode():
                # Both from the start of a stream, so that their codes can be compared.
                equal = _agreement(model, peer.encoder(CODEBOOKS, count), lanes.inputs)
                theirs = peer.encoder(CODEBOOKS, count)
                ours_ms = times_ms(
                    lambda i: after(run(lanes.inputs[i % INPUT_SETS], lanes.state, everyone), 8),  # noqa: B023
                    device,
                    seconds,
                )
                theirs_ms = times_ms(
                    lambda i: theirs(lanes.inputs[i % INPUT_SETS]),  # noqa: B023
                    device,
                    seconds,
                )
        except RuntimeError as error:  # out of memory, or whatever the peer cannot do
            rows.append(Row(f"{count:,} lanes", note=f"not timed: {str(error).splitlines()[0]}"))
            continue
        finally:
            _collect(device)
        for name, found in (("streamenc", ours_ms), ("moshi", theirs_ms)):
            ratio = median(found) / median(ours_ms)
            shared = equal if name == "moshi" else None
            rows.append(Row.of(f"{count:,} lanes, {name}", found, ratio=ratio, agreement=shared))
            if equal >= LEAST_AGREEMENT:
                best[name] = max(best[name], count * STEP_MS / median(found))
    facts = _skipped(budget)
    if best["moshi"]:
        gain = best["streamenc"] / best["moshi"]
        facts["best throughput over moshi's best"] = (
            f"{gain:.2f} times (target 5: {verdict(gain >= MOSHI_TARGET)})"
        )
    return Table(title, UNIT, rows, reference="streamenc", facts=facts)


def _agreement(model: Model, theirs: peers.Step, inputs: list[Tensor]) -> float:
    """The share of codes that are the same, from the first frame on."""
    stream = Stream(model, batch=inputs[0].shape[0], codebooks=CODEBOOKS)
    ours = torch.cat([_tensor(stream.push(x)) for x in inputs], dim=-1)
    other = torch.cat([_tensor(theirs(x)) for x in inputs], dim=-1)
    return agreement(other.cpu().numpy(), ours.cpu().numpy())


def _entered(model: Model, x: Tensor) -> Tensor:
    """As a stream takes a chunk in: codes as they are, audio in the model's dtype."""
    like = model.like
    x = x.to(like.device) if model.spec.input.kind == "codes" else x.to(like)
    return model.before(x)


def _tensor(signal: Any) -> Tensor:
    assert isinstance(signal, Tensor)
    return signal


def _skipped(budget: Budget) -> dict[str, Any]:
    return {"no time for": ", ".join(budget.skipped)} if budget.skipped else {}


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def _collect(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
