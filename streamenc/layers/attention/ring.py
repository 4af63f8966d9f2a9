"""The ring of keys and values: what attention on a stream remembers, and how a step uses it.

Number n lies in slot n % slots. Numbers count positions, or chunks of positions. A query sees a
window of them: the newest that it may see, and the `window` - 1 before that.

A short step writes its keys and values ahead, in place, into slots that no query can see any more:
until the position moves on they are visible to nobody, so a lane that is not committed was not
harmed. With fewer slots than window + max_step - 1, a step would overwrite what its own first query
still needs. A longer step reaches such slots, so it attends in blocks and gives new rings.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc_kernels import causal_bias


class Ring(NamedTuple):
    """The form of a ring; the tensors are (batch, heads, slots * chunk, head_dim) each.

    window   Numbers that a query sees.
    slots    Numbers that the ring holds.
    growing  Never turns, as the stream has no more numbers than it has slots; `filled` tells how
             much of it there is to look at.
    chunk    Positions of a number. All queries of a chunk see the same.
    block    So many numbers' queries attend at once in a long step; 1 where `chunk` is not.
    beside   Positions that are computed along with each chunk, behind its own: only the queries of
             this chunk see them, and the ring does not keep them.
    """

    window: int
    slots: int
    growing: bool = False
    chunk: int = 1
    block: int = 1
    beside: int = 0

    @property
    def max_step(self) -> int:
        """How many numbers may be written in place at once."""
        return self.slots if self.growing else self.slots - self.window + 1

    def empty(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a stream that has had nothing, for new ones like `like`."""
        shape = (*like.shape[:2], self.slots * self.chunk, like.shape[3])
        return like.new_zeros(shape), like.new_zeros(shape)

    def begun(self, new: Tensor) -> Tensor:
        """Keys or values of a stream that begins with these, (batch, heads, positions, head_dim),
        no more than the ring holds."""
        return F.pad(new, (0, 0, 0, self.slots * self.chunk - new.shape[2]))

    def in_place(
        self, first: Tensor, new: int, dtype: torch.dtype, *, filled: int | None = None
    ) -> InPlace:
        """A step of up to `max_step` new numbers, each of which is the newest that its query sees.

        first   (batch,) int64, the first of them in each lane.
        filled  How many slots hold anything in any lane; all where None.
        """
        assert 1 <= new <= self.max_step and (new == 1 or self.chunk == 1)
        numbers = first[:, None] + torch.arange(new, device=first.device)
        newest = numbers[:, -1:]
        slots = torch.arange(self.slots if filled is None else filled, device=first.device)
        # A slot holds the newest number that is congruent to it and not past the last one written.
        ages = (newest - slots) % self.slots
        bias = self._by_position(causal_bias(numbers, newest - ages, self.window, dtype))
        return InPlace(self, self._rows(numbers), F.pad(bias, (0, self.beside)), ages)

    def in_blocks(
        self,
        first: Tensor,
        new: int,
        queries: int,
        dtype: torch.dtype,
        *,
        early: int = 0,
        total: Tensor | None = None,
    ) -> InBlocks:
        """A step of any length: query i sees the numbers up to first + early + i.

        first    (batch,) int64, the first new number in each lane.
        new      How many new numbers have keys and values.
        queries  How many have queries; they may see numbers that never come, given `total`.
        total    (batch,) int64, how many positions there are at all, where the last number has
                 fewer than `chunk`.
        """
        span = self.window - 1
        past, after = span - early, queries + early - new
        assert after >= 0 and (total is not None or not after)
        assert self.block == 1 or self.chunk == 1
        numbers = first[:, None] - past + torch.arange(queries + span, device=first.device)
        full, blocks = queries - queries % self.block, []
        for start, stop in ((0, full), (full, queries)):
            if start < stop:
                size = min(self.block, stop - start)
                now = _overlapping(numbers[:, start + span : stop + span], size, size)
                held = _overlapping(numbers[:, start : stop + span], size + span, size)
                blocks.append((size * self.chunk, self._bias(now, held, dtype, total)))
        there = numbers[:, : past + new]
        rows = self._rows(there[:, :past]), self._rows(there[:, -self.slots :])
        computed = queries * (self.chunk + self.beside)
        return InBlocks(self, *rows, after * self.chunk, computed, blocks)

    def _rows(self, numbers: Tensor) -> Tensor:
        """Where numbers (batch, n) lie in the tensors, (batch, 1, n * chunk, 1)."""
        within = torch.arange(self.chunk, device=numbers.device)
        rows = (numbers % self.slots)[:, :, None] * self.chunk + within
        return rows.flatten(1)[:, None, :, None]

    def _by_position(self, bias: Tensor) -> Tensor:
        """Its last axis counts numbers; the result's counts their positions."""
        return bias[..., None].expand(*bias.shape, self.chunk).flatten(3)

    def _bias(self, now: Tensor, held: Tensor, dtype: torch.dtype, total: Tensor | None) -> Tensor:
        """What the queries of blocks see, (batch * blocks, 1, queries, keys): `now` are the newest
        numbers that they may, (batch, blocks, queries), and `held` those of the keys."""
        bias = causal_bias(now.flatten(0, 1), held.flatten(0, 1), self.window, dtype)
        bias = F.pad(self._by_position(bias), (0, self.beside))
        if total is None:
            return bias
        # What lies beside a chunk goes on where the newest number of its window ends.
        chunk, more = self.chunk, self.chunk + self.beside
        positions = held[:, :, :-1, None] * chunk + torch.arange(chunk, device=now.device)
        last = held[:, :, -1:] * chunk + torch.arange(more, device=now.device)
        there = torch.cat((positions.flatten(2), last), dim=2) < total[:, None, None]
        return bias.masked_fill(~there.flatten(0, 1)[:, None, None], float("-inf"))


class Relative(NamedTuple):
    """What is added to the product of each query and key: of each pair, times the query's gate.

    gate   (batch, heads, queries, 1).
    table  (batch or 1, heads, queries of a chunk, keys), as a step's `arranged` gives it.
    """

    gate: Tensor
    table: Tensor

    def added_to(self, bias: Tensor) -> Tensor:
        return bias + self.gate * self.table


class InPlace(NamedTuple):
    """A short step, the same for all layers; `Ring.in_place` plans it.

    rows  (batch, 1, positions, 1), where the new ones are written.
    bias  (batch, 1, queries, keys), or of one query for all those of a chunk.
    ages  (batch, slots), by how many numbers what lies in each is older than the newest.
    """

    ring: Ring
    rows: Tensor
    bias: Tensor
    ages: Tensor

    @property
    def queries(self) -> int:
        """Positions that attend."""
        return self.rows.shape[2] + self.ring.beside

    def arranged(self, table: Tensor) -> Tensor:
        """What is added for each key, (heads, queries, keys in order of time), as the keys lie in
        the ring: (batch, heads, queries, keys)."""
        by_number = table.reshape(*table.shape[:2], self.ring.window, self.ring.chunk)
        by_slot = by_number[:, :, self.ring.window - 1 - self.ages]
        return by_slot.permute(2, 0, 1, 3, 4).flatten(3)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        relative: Relative | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the queries attend to, in their shape, and the same two rings, written.

        q, k, v  (batch, heads, positions, head_dim), all that are computed.
        relative  What is added to the products of a chunk's queries and keys.
        """
        beside, own = self.ring.beside, self.rows.shape[2]
        rows = self.rows.expand(*k.shape[:2], -1, k.shape[3])
        keys.scatter_(2, rows, k[:, :, :own])
        values.scatter_(2, rows, v[:, :, :own])
        filled = self.bias.shape[3] - beside
        seen = keys[:, :, :filled], values[:, :, :filled]
        if beside:
            seen = torch.cat((seen[0], k[:, :, own:]), 2), torch.cat((seen[1], v[:, :, own:]), 2)
        bias = self.bias if relative is None else relative.added_to(self.bias)
        return _attended(q, *seen, bias), keys, values


class InBlocks(NamedTuple):
    """A long step, the same for all layers; `Ring.in_blocks` plans it.

    past     (batch, 1, positions, 1), where those lie that are seen besides the new ones.
    kept     (batch, 1, positions, 1), where the last ones, past or new, are written.
    after    So many positions are missing behind the new ones.
    queries  Positions that attend.
    blocks   Blocks of one size, side by side, and then the rest: positions with queries in each,
             those beside not counted, and the bias, (batch * blocks, 1, queries, keys).
    """

    ring: Ring
    past: Tensor
    kept: Tensor
    after: int
    queries: int
    blocks: list[tuple[int, Tensor]]

    def arranged(self, table: Tensor) -> Tensor:
        """What is added for each key, (heads, queries, keys in order of time), of a chunk's queries
        and their window: it is the same in all blocks, (1, heads, queries, keys)."""
        return table[None]

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        relative: Relative | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the queries attend to, in their shape, and two new rings.

        q, k, v  (batch, heads, positions, head_dim), all that are computed.
        relative  What is added to the products of a chunk's queries and keys.
        """
        k, k_beside, keys = self._there(k, keys)
        v, v_beside, values = self._there(v, values)
        batch, beside, parts, start, begin = q.shape[0], self.ring.beside, [], 0, 0
        span = (self.ring.window - 1) * self.ring.chunk
        for size, bias in self.blocks:
            count = bias.shape[0] // batch
            stop, end = start + count * (size + beside), begin + count * size
            now = _side_by_side(q[:, :, start:stop], size + beside, size + beside)
            k_seen = _side_by_side(k[:, :, begin : end + span], size + span, size)
            v_seen = _side_by_side(v[:, :, begin : end + span], size + span, size)
            if beside:
                k_seen = torch.cat((k_seen, k_beside), dim=2)
                v_seen = torch.cat((v_seen, v_beside), dim=2)
            if relative is not None:
                gate = _side_by_side(relative.gate[:, :, start:stop], size, size)
                bias = Relative(gate, relative.table).added_to(bias)
            y = _attended(now, k_seen, v_seen, bias)
            parts.append(y.view(batch, count, *y.shape[1:]).transpose(1, 2).flatten(2, 3))
            start, begin = stop, end
        return torch.cat(parts, dim=2), keys, values

    def _there(self, new: Tensor, held: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Past and new positions without a gap, those beside each block, and the ring after."""
        chunk, beside = self.ring.chunk, self.ring.beside
        behind = new
        if beside:
            spans = new.reshape(*new.shape[:2], -1, chunk + beside, new.shape[3])
            new = spans[:, :, :, :chunk].flatten(2, 3)
            behind = spans[:, :, :, chunk:].transpose(1, 2).flatten(0, 1)
        past, kept = (
            rows.expand(*new.shape[:2], -1, new.shape[3]) for rows in (self.past, self.kept)
        )
        there = torch.cat((held.gather(2, past), new), dim=2)
        # New rings: these writes reach slots that a lane which is not committed still needs.
        held = held.scatter(2, kept, there[:, :, -kept.shape[2] :])
        return F.pad(there, (0, 0, 0, self.after)), behind, held


def _overlapping(numbers: Tensor, size: int, step: int) -> Tensor:
    """(batch, n) -> (batch, blocks, size), `step` apart."""
    return numbers[:, None] if numbers.shape[1] == size else numbers.unfold(1, size, step)


def _side_by_side(x: Tensor, size: int, step: int) -> Tensor:
    """(batch, heads, positions, head_dim) -> (batch * blocks, heads, size, head_dim), `step` apart;
    nothing is copied of one lane, or of one block."""
    if x.shape[2] == size:
        return x
    return x.unfold(2, size, step).permute(0, 2, 1, 4, 3).flatten(0, 1)


def _attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    # ONNX wants the bias of each query, also where all have the same; to torch it is a view.
    bias = bias.expand(-1, -1, q.shape[2], -1)
    return F.scaled_dot_product_attention(q, k, v, bias)
