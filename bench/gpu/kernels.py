"""The kernels on a device: against their definitions in float64, then beside them in time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.gpu.roofline import (
    Budget,
    Peaks,
    poison,
    relative_error,
    replays_ms,
    rotated,
    times_ms,
)
from bench.harness import Row, Table
from streamenc_kernels import (
    Quantiser,
    plan_ring,
    ring_attention,
    ring_attention_torch,
    rvq_search,
    rvq_search_torch,
)
from streamenc_kernels.dispatch import Implementation
from streamenc_kernels.ring_attention.definition import RingPlan

UNIT = "ms per call"
KERNEL, PLAIN, COMPILED = "kernel", "plain torch", "torch.compile"
TIMES_PLAIN, TIMES_FLOOR = 5.0, 2.0
# Of the distance's scale: what float32 sums of 256 products are off by, with a margin.
DISTANCE_TOLERANCE = 1e-5
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
CASE_SECONDS = 0.6


def implementation_on(device: torch.device) -> Implementation:
    """The kernel, on a GPU or in Triton's interpreter; else the definition stands in for it."""
    on = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return "triton" if on else "torch"


@dataclass(frozen=True, slots=True)
class Search:
    """`rvq_search` for so many rows at once; levels of one quantiser, or of two."""

    name: str
    rows: int
    levels: tuple[int, ...]
    entries: int
    dim: int

    kernel = "rvq_search"

    @property
    def title(self) -> str:
        return f"rvq_search, {self.name}, {self.rows:,} rows"

    def make(self, device: torch.device, seed: int) -> list[Quantiser]:
        generator = torch.Generator(device).manual_seed(seed)
        normal = partial(torch.randn, generator=generator, device=device)
        quantisers = []
        for levels in self.levels:
            books = normal(levels, self.entries, self.dim)
            # Each level quantises what the one before left over.
            books *= 0.9 ** torch.arange(levels, device=device)[:, None, None]
            norms = 0.5 * books.square().sum(dim=-1)
            quantisers.append(Quantiser(normal(self.rows, self.dim), books, norms))
        return quantisers

    @property
    def nbytes(self) -> int:
        """Vectors, codebooks and norms once in, codes once out."""
        numbers = self.rows * self.dim * len(self.levels)
        numbers += sum(self.levels) * self.entries * (self.dim + 1)
        return 4 * numbers + 8 * self.rows * sum(self.levels)

    @property
    def flops(self) -> int:
        return 2 * self.rows * sum(self.levels) * self.entries * self.dim

    def run(self, quantisers: list[Quantiser], implementation: Implementation) -> Tensor:
        return rvq_search(quantisers, implementation=implementation)[0]

    def plain(self, quantisers: list[Quantiser]) -> Tensor:
        return rvq_search_torch(quantisers)[0]

    def compiled(self, backend: str) -> Callable[[list[Quantiser]], Tensor]:
        def search(tensors: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
            return rvq_search_torch([Quantiser(*three) for three in tensors])[0]

        fast: Any = torch.compile(search, backend=backend, dynamic=False)
        return lambda quantisers: fast([(h.x, h.codebooks, h.half_norms) for h in quantisers])

    def check(self, device: torch.device, implementation: Implementation) -> str:
        """What is wrong; "" where each code is the nearest entry, up to rounding, to what those
        before it have left over, and the sums are those of the entries."""
        quantisers = self.make(device, seed=1000)
        poison(device)
        codes, sums = rvq_search(quantisers, sums=True, implementation=implementation)
        if codes.shape != (self.rows, sum(self.levels)) or codes.dtype != torch.int64:
            return f"codes are {tuple(codes.shape)} {codes.dtype}"
        if int(codes.min()) < 0 or int(codes.max()) >= self.entries:
            return f"codes lie in {int(codes.min())}..{int(codes.max())}"
        before = 0
        for quantiser, total in zip(quantisers, sums, strict=True):
            left = quantiser.x.double()
            for level in range(quantiser.depth):
                book = quantiser.codebooks[level].double()
                distance = 0.5 * book.square().sum(dim=1) - left @ book.T
                chosen = codes[:, before + level]
                over = distance.gather(1, chosen[:, None])[:, 0] - distance.amin(dim=1)
                scale = distance.abs().amax(dim=1)
                if not bool((over <= DISTANCE_TOLERANCE * scale).all()):
                    worst = float((over / scale).max())
                    return f"level {level} is off the nearest entry by {worst:.1e} of the distances"
                left = left - book[chosen]
            error = relative_error(total, quantiser.x.double() - left)
            if error > TOLERANCES[torch.float32]:
                return f"the sums are off by {error:.1e}"
            before += quantiser.depth
        return ""


@dataclass(frozen=True, slots=True)
class Ring:
    """`ring_attention` of one layer, as Mimi has it: so many lanes at once."""

    lanes: int
    dtype: torch.dtype
    heads: int = 8
    dim: int = 64
    window: int = 250
    time: int = 2

    kernel = "ring_attention"

    @property
    def title(self) -> str:
        return f"ring_attention, {self.lanes:,} lanes, {str(self.dtype).removeprefix('torch.')}"

    @property
    def capacity(self) -> int:
        return self.window + self.time - 1

    def make(self, device: torch.device, seed: int) -> tuple[Tensor, ...]:
        """q, k, v, keys, values and positions: most rings are full, some are not."""
        generator = torch.Generator(device).manual_seed(seed)
        new = (self.lanes, self.heads, self.time, self.dim)
        ring = (self.lanes, self.heads, self.capacity, self.dim)
        drawn = [
            torch.randn(shape, generator=generator, device=device).to(self.dtype)
            for shape in (new, new, new, ring, ring)
        ]
        most = 5 * self.capacity
        position = torch.randint(most, (self.lanes,), generator=generator, device=device)
        return (*drawn, position)

    def plan(
        self, inputs: tuple[Tensor, ...], how: Implementation, active: Tensor | None = None
    ) -> RingPlan:
        keys, position = inputs[3], inputs[5]
        return plan_ring(
            position, self.time, keys, self.window, 1e4, active=active, implementation=how
        )

    @property
    def nbytes(self) -> int:
        """The visible part of the ring once in, new positions once in and once out."""
        size = torch.finfo(self.dtype).bits // 8
        ring = 2 * (self.window - 1)
        return self.lanes * self.heads * self.dim * size * (ring + 6 * self.time)

    @property
    def flops(self) -> int:
        return 4 * self.lanes * self.heads * self.time * self.window * self.dim

    def check(self, device: torch.device, implementation: Implementation) -> str:
        """What is wrong; "" where steps past the ring's end equal the definition in float64, and
        idle lanes and all slots that are not new stay as they were."""
        inputs = self.make(device, seed=1000)
        keys, values, position = inputs[3:]
        exact = [x.double() for x in (keys, values)]
        for step in range(3):
            q, k, v = self.make(device, seed=2000 + step)[:3]
            active = torch.arange(self.lanes, device=device) % 3 != step
            mask = None if step == 2 else active
            here = (q, k, v, keys, values, position)
            held = keys.clone(), values.clone()
            poison(device)
            ours = ring_attention(q, k, v, keys, values, self.plan(here, implementation, mask))
            wide = (q.double(), k.double(), v.double(), *exact, position)
            wanted = ring_attention_torch(*wide[:5], self.plan(wide, "torch", mask))
            error = relative_error(ours, wanted)
            if error > TOLERANCES[self.dtype]:
                return f"step {step} is off by {error:.1e}"
            for name, ring, old, true in zip(
                ("keys", "values"), (keys, values), held, exact, strict=True
            ):
                slots = (position[:, None] + torch.arange(self.time, device=device)) % self.capacity
                new = torch.zeros(self.lanes, self.capacity, dtype=torch.bool, device=device)
                new.scatter_(1, slots, True)
                if mask is not None:
                    new &= mask[:, None]
                changed = (ring != old).any(dim=3).any(dim=1)
                if bool((changed & ~new).any()):
                    return f"step {step} changed {name} that are not new"
                error = relative_error(ring, true)
                if error > TOLERANCES[self.dtype]:
                    return f"the {name} held after step {step} are off by {error:.1e}"
            position = position + self.time * (active if mask is not None else 1)
        return ""

    def compiled(self, backend: str) -> Callable[[tuple[Any, ...]], Tensor]:
        fast: Any = torch.compile(ring_attention_torch, backend=backend, dynamic=False)
        return lambda both: fast(*both[0][:5], both[2])


Case = Search | Ring


def cases(*, small: bool = False) -> list[Case]:
    """The most important first."""
    if small:
        return [
            Search("two quantisers", 5, (1, 3), 48, 32),
            Ring(3, torch.float32, heads=2, dim=16, window=9),
            Ring(3, torch.bfloat16, heads=2, dim=16, window=9),
        ]
    mimi: dict[str, Any] = {"levels": (1, 7), "entries": 2048, "dim": 256}
    return [
        Search("Mimi's 8 codebooks", 64, **mimi),
        Search("Mimi's 8 codebooks", 2048, **mimi),
        Search("Mimi's 8 codebooks", 1, **mimi),
        Ring(64, torch.float32),
        Ring(2048, torch.float32),
        Ring(2048, torch.bfloat16),
        Ring(1, torch.float32),
        Search("EnCodec's 8 codebooks", 384, (8,), 1024, 128),
        Search("nano's 16 codebooks", 256, (16,), 1024, 64),
        Ring(64, torch.bfloat16),
    ]


def time_case(
    case: Case, device: torch.device, peaks: Peaks, budget: Budget, *, small: bool
) -> Table:
    """The kernel, plain torch and torch.compile, as called and within a graph."""
    how = implementation_on(device)
    floor_ms = peaks.floor_ms(case.nbytes, case.flops)
    backend = "eager" if small else "inductor"
    if isinstance(case, Search):
        sets: list[Any] = rotated(partial(case.make, device), case.nbytes, device)
        ways: dict[str, Callable[[Any], Any]] = {
            KERNEL: partial(case.run, implementation=how),
            PLAIN: case.plain,
        }
    else:
        ring = case
        made = rotated(partial(case.make, device), case.nbytes, device)
        sets = [(inputs, ring.plan(inputs, how), ring.plan(inputs, "torch")) for inputs in made]
        ways = {
            KERNEL: lambda both: ring_attention(*both[0][:5], both[1]),
            PLAIN: lambda both: ring_attention_torch(*both[0][:5], both[2]),
        }
    rows: list[Row] = []
    in_graph: dict[str, float] = {}
    for name in (KERNEL, PLAIN, COMPILED):
        if not budget.allows(f"{case.title}: {name}", 20 if name == COMPILED and not small else 0):
            continue
        try:
            way = case.compiled(backend) if name == COMPILED else ways[name]
            rows += _way_rows(name, way, sets, device, in_graph, 0.02 if small else CASE_SECONDS)
        except RuntimeError as error:  # what torch raises for what it cannot compile or capture
            rows.append(Row(name, note=f"not timed: {str(error).partition(chr(10))[0]}"))
    facts: dict[str, Any] = {
        "roofline": f"{floor_ms:.4f} ms for {case.nbytes / 1e6:.2f} MB and {case.flops / 1e9:.2f} "
        "GFLOP in float32",
        "sets of inputs": len(sets),
    }
    facts |= _verdicts(case, in_graph, floor_ms)
    return Table(case.title, UNIT, rows, facts=facts)


def _way_rows(
    name: str,
    way: Callable[[Any], Any],
    sets: list[Any],
    device: torch.device,
    in_graph: dict[str, float],
    seconds: float,
) -> Iterator[Row]:
    with torch.inference_mode():
        called = times_ms(lambda i: way(sets[i % len(sets)]), device, seconds)
        yield Row.of(f"{name}, as called", called)
        replayed = replays_ms(way, sets, device, seconds)
        in_graph[name] = median(replayed)
        yield Row.of(f"{name}, in a graph", replayed)


def _verdicts(case: Case, in_graph: dict[str, float], floor_ms: float) -> dict[str, Any]:
    """Within a graph, where the kernel's own time is what counts."""
    if KERNEL not in in_graph:
        return {}
    over = in_graph[KERNEL] / floor_ms
    met = verdict(over <= TIMES_FLOOR) if case.kernel == "rvq_search" else ""
    found = {"over the roofline": f"{over:.2f} times{met and f' (target 2: {met})'}"}
    if PLAIN in in_graph:
        gain = in_graph[PLAIN] / in_graph[KERNEL]
        met = verdict(gain >= TIMES_PLAIN) if case.kernel == "rvq_search" else ""
        found["faster than plain torch"] = f"{gain:.2f} times{met and f' (target 5: {met})'}"
    return found


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"
