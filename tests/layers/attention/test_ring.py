"""The ring against plain attention under a mask over whole streams: any steps, lanes of any age."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.layers.attention.ring import InBlocks, InPlace, Ring
from streamenc_kernels import plan_ring, ring_attention, rotary, rotate
from tests.support.compare import assert_close, poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

LANES, HEADS, DIM, NUMBERS, THETA = 3, 2, 6, 150, 10_000.0


class Case(NamedTuple):
    """early: a query waits for so many chunks after its own. turned: keys and queries are rotated,
    by `ring_attention` itself in short steps."""

    ring: Ring
    early: int = 0
    turned: bool = False

    @property
    def span(self) -> int:
        """Rows that are computed for each number."""
        return self.ring.chunk + self.ring.beside


CASES = {
    "window": Case(Ring(7, 7, block=8)),
    "window, steps of three in place": Case(Ring(7, 9, block=8)),
    "long window": Case(Ring(40, 41, block=64)),
    "window of one": Case(Ring(1, 2, block=5)),
    "rotary": Case(Ring(7, 9, block=8), turned=True),
    "growing": Case(Ring(NUMBERS, NUMBERS, growing=True)),
    "chunks": Case(Ring(3, 3, chunk=4)),
    "own chunk alone": Case(Ring(1, 1, chunk=5)),
    "chunks that wait": Case(Ring(4, 4, chunk=3), early=1),
    "own chunk and the next": Case(Ring(2, 2, chunk=3), early=1),
    "chunks and a few beside": Case(Ring(3, 3, chunk=4, beside=2)),
    "chunks and many beside": Case(Ring(2, 2, chunk=3, beside=7)),
}


def attention(case: Case, q: Tensor, k: Tensor, v: Tensor, total: int) -> Tensor:
    """The definition: all rows of one lane, (heads, rows, dim), of a stream of `total` positions.

    A query sees the rows of the chunks in its window, and those beside its own; none that lie past
    the stream's end.
    """
    row = torch.arange(q.shape[1])
    chunk, within = row // case.span, row % case.span
    own, there = within < case.ring.chunk, chunk * case.ring.chunk + within < total
    age = chunk[:, None] + case.early - chunk
    seen = ((age >= 0) & (age < case.ring.window) & own) | (age == case.early)
    if case.turned:
        turn = rotary(row[None], DIM, THETA, q.dtype)
        q, k = rotate(q[None], *turn)[0], rotate(k[None], *turn)[0]
    scores = q @ k.transpose(1, 2) / DIM**0.5
    return scores.masked_fill(~(seen & there), float("-inf")).softmax(dim=2) @ v


class Streams:
    """Lanes that have had different numbers, with what each of them gets in the end."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.random = case, random.Random(seed)
        torch.manual_seed(seed)
        shape = (3, LANES, HEADS, NUMBERS * case.span, DIM)
        self.q, self.k, self.v = torch.randn(shape, dtype=torch.float64)
        every = zip(self.q, self.k, self.v, strict=True)
        self.whole = [attention(case, *one, total=10**9) for one in every]
        lanes, self.had = [], []
        for lane in range(LANES):  # each has begun alone
            self.had.append(1 + case.early + self.random.randrange(3 * case.ring.slots) % 20)
            rings = case.ring.empty(self.k[lane : lane + 1])
            y, rings = self.attend([lane], [0], self.had[-1], rings, early=case.early)
            self.assert_right(lane, 0, y[0])
            lanes.append((torch.tensor(self.had[-1:]), *rings))
        self.pool = states.allocate(lanes[0], LANES)
        for lane, state in enumerate(lanes):
            states.put_lane(self.pool, lane, state)

    def attend(
        self,
        lanes: list[int],
        had: list[int],
        new: int,
        rings: tuple[Tensor, Tensor],
        *,
        early: int = 0,
        total: int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """A step of `new` numbers, in place where it may be."""
        case, first = self.case, torch.tensor(had)
        queries = new - early if total is None else new + case.early
        waited = case.early - early
        q = self.rows(self.q, lanes, [at - waited for at in had], queries)
        k, v = (self.rows(x, lanes, had, new) for x in (self.k, self.v))
        short = new <= case.ring.max_step and not early and total is None
        if case.turned and short:
            plan = plan_ring(first, new, rings[0], case.ring.window, THETA)
            return ring_attention(q, k, v, *rings, plan), rings
        if case.turned:
            turn = rotary(first[:, None] + torch.arange(new), DIM, THETA, q.dtype)
            q, k = rotate(q, *turn), rotate(k, *turn)
        way: InPlace | InBlocks
        if short:
            filled = self.random.choice([None, max(had) + new]) if case.ring.growing else None
            way = case.ring.in_place(first, new, q.dtype, filled=filled)
        else:
            end = None if total is None else torch.tensor([total])
            way = case.ring.in_blocks(first, new, queries, q.dtype, early=early, total=end)
        before = states.clone(rings)
        y, *after = way.attend(q, k, v, *rings)
        assert way.queries == q.shape[2] and y.shape == q.shape
        if short:
            assert all(a is b for a, b in zip(after, rings, strict=True))
        else:
            assert all(torch.equal(a, b) for a, b in zip(before, rings, strict=True))
        return y, (after[0], after[1])

    def rows(self, x: Tensor, lanes: list[int], first: list[int], count: int) -> Tensor:
        span = self.case.span
        cut = [
            x[lane, :, at * span : (at + count) * span]
            for lane, at in zip(lanes, first, strict=True)
        ]
        return torch.stack(cut)

    def live(self, lane: int) -> list[Tensor]:
        """What a lane's ring holds for the queries to come, copied."""
        chunk, slots, had = self.case.ring.chunk, self.case.ring.slots, self.had[lane]
        numbers = torch.arange(max(0, had - self.case.ring.window + 1), had)
        at = ((numbers % slots)[:, None] * chunk + torch.arange(chunk)).flatten()
        return [ring[lane, :, at] for ring in self.pool[1:]]

    def assert_right(self, lane: int, first: int, y: Tensor, total: int | None = None) -> None:
        whole = self.whole[lane]
        if total is not None:
            whole = attention(self.case, self.q[lane], self.k[lane], self.v[lane], total)
        start = first * self.case.span
        assert_close(y, whole[:, start : start + y.shape[1]], 1e-12)

    def turn(self, new: int) -> None:
        """One step of all lanes, of which some are idle and get anything."""
        active = [self.random.random() < 0.6 for _ in range(LANES)]
        live = [self.live(lane) for lane in range(LANES)]
        y, rings = self.attend(list(range(LANES)), self.had, new, self.pool[1:])
        position = self.pool[0] + new
        states.commit(self.pool, (position, *rings), torch.tensor(active))
        for lane in range(LANES):
            if active[lane]:
                self.assert_right(lane, self.had[lane] - self.case.early, y[lane])
                self.had[lane] += new
            else:
                assert all(
                    torch.equal(a, b) for a, b in zip(live[lane], self.live(lane), strict=True)
                )
        assert self.pool[0].tolist() == self.had

    def finish(self, lane: int, more: int) -> None:
        """The last step of a lane, after which its stream has had `more` positions more."""
        ring, had = self.case.ring, self.had[lane]
        new, total = -(-more // ring.chunk), had * ring.chunk + more
        _, *rings = states.lane(self.pool, lane)
        y, _ = self.attend([lane], [had], new, (rings[0], rings[1]), total=total)
        self.assert_right(lane, had - self.case.early, y[0], total)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", CASES)
def test_any_steps_of_any_lanes_equal_a_mask(name, seed):
    streams = Streams(CASES[name], seed)
    ring = streams.case.ring
    for _ in range(16):
        long = min(2 * ring.slots + 5, 30)
        new = streams.random.choice([1, 1, min(ring.max_step, 9), streams.random.randint(1, long)])
        if max(streams.had) + new > NUMBERS:
            break
        streams.turn(new)
    if ring.chunk > 1:
        least = ring.beside if not streams.case.early else 0
        for lane in range(LANES):
            more = least + streams.random.randint(int(not streams.case.early), 2 * ring.chunk)
            if streams.had[lane] + -(-more // ring.chunk) <= NUMBERS:
                streams.finish(lane, more)


def test_a_slot_too_few_is_found_out(monkeypatch):
    """The proof above sees what it is for: here a step overwrites what its first query needs."""
    streams = Streams(CASES["window, steps of three in place"], 0)
    monkeypatch.setattr(Ring, "max_step", property(lambda ring: ring.slots - ring.window + 2))
    with pytest.raises(AssertionError):
        for _ in range(4):
            streams.turn(4)


def test_an_end_that_nobody_told_of_is_refused():
    with pytest.raises(AssertionError):
        Ring(3, 3, chunk=4).in_blocks(torch.tensor([5]), 1, 2, torch.float32)
