"""The kernels on a device: against their definitions in float64, then beside them in time.

An op that is new gets a class with what `Op` asks for, or a `Plain` in `ops`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.phase import Found, Phase
from bench.gpu.phases.ops import KERNEL, PLAIN, Op, step_ops
from bench.gpu.timing import (
    FLOAT32_LIMIT,
    Peaks,
    collect,
    float32_as,
    note_clocks,
    open_device,
    poison,
    relative_error,
    replays_ms,
    rotated,
)
from bench.harness import Row
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
TABLE = "Kernels in time, within a graph"
# Of the distance's scale: what float32 sums of 256 products are off by, with a margin.
DISTANCE_TOLERANCE = 1e-5
LIMITS = {torch.float32: FLOAT32_LIMIT, torch.bfloat16: 1e-2}
CASE_SECONDS = 0.15


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

    def ways(
        self, device: torch.device, implementation: Implementation
    ) -> dict[str, Callable[[int], Callable[[], Any]]]:
        return {
            KERNEL: lambda seed: partial(
                rvq_search, self.make(device, seed), implementation=implementation
            ),
            PLAIN: lambda seed: partial(rvq_search_torch, self.make(device, seed)),
        }

    def check(self, device: torch.device, implementation: Implementation) -> Found:
        """Each code is the nearest entry, up to rounding, to what those before it have left over,
        and the sums are those of the entries."""
        quantisers = self.make(device, seed=1000)
        poison(device)
        codes, sums = rvq_search(quantisers, sums=True, implementation=implementation)
        if codes.shape != (self.rows, sum(self.levels)) or codes.dtype != torch.int64:
            return Found(wrong=f"codes are {tuple(codes.shape)} {codes.dtype}")
        if int(codes.min()) < 0 or int(codes.max()) >= self.entries:
            return Found(wrong=f"codes lie in {int(codes.min())}..{int(codes.max())}")
        before, worst, same = 0, 0.0, []
        for quantiser, total in zip(quantisers, sums, strict=True):
            left = quantiser.x.double()
            for level in range(quantiser.depth):
                book = quantiser.codebooks[level].double()
                distance = 0.5 * book.square().sum(dim=1) - left @ book.T
                chosen = codes[:, before + level]
                same.append((chosen == distance.argmin(dim=1)).double().mean())
                over = distance.gather(1, chosen[:, None])[:, 0] - distance.amin(dim=1)
                scale = distance.abs().amax(dim=1)
                if not bool((over <= DISTANCE_TOLERANCE * scale).all()):
                    far = float((over / scale).max())
                    return Found(
                        wrong=f"level {level} is off the nearest by {far:.1e} of distances"
                    )
                left = left - book[chosen]
            worst = max(worst, relative_error(total, quantiser.x.double() - left))
            before += quantiser.depth
        return Found(worst, FLOAT32_LIMIT, agreement=float(torch.stack(same).mean()))


@dataclass(frozen=True, slots=True)
class Ring:
    """`ring_attention` of one layer, as Mimi has it: so many lanes at once.

    spare  There are so many more rings than lanes, which take theirs by index, in any order.
    """

    lanes: int
    dtype: torch.dtype
    heads: int = 8
    dim: int = 64
    window: int = 250
    time: int = 2
    spare: int = 0

    @property
    def title(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        indexed = f", by index of {self.lanes + self.spare:,}" if self.spare else ""
        return f"ring_attention, {self.lanes:,} lanes, {dtype}{indexed}"

    @property
    def capacity(self) -> int:
        return self.window + self.time - 1

    def make(self, device: torch.device, seed: int) -> tuple[Tensor, ...]:
        """q, k, v, keys, values and positions: most rings are full, some are not."""
        generator = torch.Generator(device).manual_seed(seed)
        new = (self.lanes, self.heads, self.time, self.dim)
        ring = (self.lanes + self.spare, self.heads, self.capacity, self.dim)
        drawn = [
            torch.randn(shape, generator=generator, device=device).to(self.dtype)
            for shape in (new, new, new, ring, ring)
        ]
        most = 5 * self.capacity
        position = torch.randint(most, (self.lanes,), generator=generator, device=device)
        return (*drawn, position)

    def index(self, device: torch.device) -> Tensor | None:
        if not self.spare:
            return None
        generator = torch.Generator().manual_seed(self.lanes)
        places = torch.randperm(self.lanes + self.spare, generator=generator)
        return places[: self.lanes].to(device)

    def plan(
        self, inputs: tuple[Tensor, ...], how: Implementation, active: Tensor | None = None
    ) -> RingPlan:
        keys, position = inputs[3], inputs[5]
        return plan_ring(
            position,
            self.time,
            keys,
            self.window,
            1e4,
            active=active,
            lanes=self.index(keys.device),
            implementation=how,
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

    def check(self, device: torch.device, implementation: Implementation) -> Found:
        """Steps past the ring's end equal the definition in float64, and idle lanes and all slots
        that are not new stay as they were."""
        inputs = self.make(device, seed=1000)
        keys, values, position = inputs[3:]
        exact = [x.double() for x in (keys, values)]
        index, errors = self.index(device), []
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
            errors.append(relative_error(ours, wanted))
            for name, ring, old, true in zip(
                ("keys", "values"), (keys, values), held, exact, strict=True
            ):
                slots = (position[:, None] + torch.arange(self.time, device=device)) % self.capacity
                mine = torch.zeros(self.lanes, self.capacity, dtype=torch.bool, device=device)
                mine.scatter_(1, slots, True)
                if mask is not None:
                    mine &= mask[:, None]
                new = mine
                if index is not None:
                    new = mine.new_zeros(len(ring), self.capacity).index_copy_(0, index, mine)
                changed = (ring != old).any(dim=3).any(dim=1)
                if bool((changed & ~new).any()):
                    return Found(wrong=f"step {step} changed {name} that are not new")
                errors.append(relative_error(ring, true))
            position = position + self.time * (active if mask is not None else 1)
        return Found(max(errors), LIMITS[self.dtype])

    def ways(
        self, device: torch.device, implementation: Implementation
    ) -> dict[str, Callable[[int], Callable[[], Any]]]:
        def call(how: Implementation, attend: Callable[..., Any], seed: int) -> Callable[[], Any]:
            *inputs, position = self.make(device, seed)
            full = (*inputs, position + self.capacity)
            return partial(attend, *full[:5], self.plan(full, how))

        return {
            KERNEL: partial(call, implementation, ring_attention),
            PLAIN: partial(call, "torch", ring_attention_torch),
        }


def cases(*, small: bool = False) -> list[Op]:
    """The most important first."""
    if small:
        return [
            Search("two quantisers", 5, (1, 3), 48, 32),
            Ring(3, torch.float32, heads=2, dim=16, window=9),
            Ring(3, torch.bfloat16, heads=2, dim=16, window=9),
            Ring(3, torch.float32, heads=2, dim=16, window=9, spare=2),
            *step_ops(3, small=True),
        ]
    books: dict[str, Any] = {"levels": (1, 7), "entries": 2048, "dim": 256}
    return [
        Search("Mimi's 8 codebooks", 64, **books),
        Search("Mimi's 8 codebooks", 2048, **books),
        Search("Mimi's 8 codebooks", 1, **books),
        Ring(64, torch.float32),
        Ring(2048, torch.float32),
        Ring(2048, torch.bfloat16),
        Ring(1, torch.float32),
        Search("EnCodec's 8 codebooks", 384, (8,), 1024, 128),
        Search("nano's 16 codebooks", 256, (16,), 1024, 64),
        Ring(64, torch.bfloat16),
        Ring(64, torch.float32, spare=192),
        *(op for lanes in (64, 2048, 1) for op in step_ops(lanes)),
    ]


def check(phase: Phase) -> None:
    """Each kernel against its definition in float64."""
    device = open_device(phase)
    how = implementation_on(device)
    with float32_as("ieee"):
        for case in cases(small=phase.dry):
            phase.check(case.title, case.title, lambda case=case: case.check(device, how))  # type: ignore[misc]
            collect(device)


def time(phase: Phase) -> None:
    """Each kernel beside plain torch, where its own time is what counts: within a graph."""
    device = open_device(phase)
    how, peaks = implementation_on(device), Peaks.known(phase)
    seconds = 0.0 if phase.dry else CASE_SECONDS
    with float32_as("ieee"):
        for case in cases(small=phase.dry):
            found: dict[str, Row] = {}
            for name, make in case.ways(device, how).items():
                row = phase.timed(
                    TABLE,
                    f"{case.title}: {name}",
                    lambda make=make, case=case: replays_ms(  # type: ignore[misc]
                        lambda call: call(), rotated(make, case.nbytes, device), device, seconds
                    ),
                    unit="ms a call",
                    subject=case.title if name == KERNEL else "",
                    note=partial(_beside, case, peaks, found),
                )
                if row is not None:
                    found[name] = row
                collect(device)
    note_clocks(phase)


def _beside(case: Op, peaks: Peaks, found: dict[str, Row], row: Row) -> str:
    """How far from the least that bytes and operations take, and from the rows before."""
    assert row.p50_ms is not None
    said = [f"{case.nbytes / 1e6:.2f} MB, {case.flops / 1e9:.2f} GFLOP"]
    floor_ms = peaks.floor_ms(case.nbytes, case.flops)
    if floor_ms is None:
        said.append("no rates were measured")
    else:
        said.append(f"{row.p50_ms / floor_ms:.2f} times the roofline's {floor_ms:.4f} ms")
    said += [
        f"{row.p50_ms / x.p50_ms:.2f} times the {name}" for name, x in found.items() if x.p50_ms
    ]
    return ", ".join(said)
