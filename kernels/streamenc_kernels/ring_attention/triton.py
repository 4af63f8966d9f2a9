"""The Triton kernel of `ring_attention`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamenc_kernels.ring_attention.definition import RingPlan

# A tile: so many slots at most, and so many products of new positions x slots x numbers of a head,
# which fit into registers. Loads run STAGES - 1 tiles ahead.
SLOTS, PRODUCTS, WARPS, STAGES = 32, 4096, 4, 3
# Where programs are so few that each has a processor to itself: so many times the slots and warps.
WIDE = 2
# Fused multiply-adds are what the definition's products do as well.
OPTIONS = {"enable_fp_fusion": True}
LOG2_E = 1.4426950408889634


def attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: RingPlan) -> Tensor:
    """As `ring_attention`; the result is laid out (batch, time, heads, head_dim)."""
    batch, heads, time, dim = q.shape
    capacity = keys.shape[2]
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    y = q.new_empty(batch, time, heads, dim).transpose(1, 2)
    # Triton launches on the current device.
    with torch.cuda.device_of(q):
        ring_attention_kernel[(heads, batch)](
            q,
            k,
            v,
            keys,
            values,
            plan.cos,
            plan.sin,
            plan.position,
            plan.position if plan.active is None else plan.active,
            plan.position if plan.lanes is None else plan.lanes,
            y,
            *q.stride()[:3],
            *k.stride()[:3],
            *v.stride()[:3],
            *y.stride()[:3],
            plan.window,
            dim**-0.5 * LOG2_E,
            CAPACITY=capacity,
            MASKED=plan.active is not None,
            INDEXED=plan.lanes is not None,
            **tile(time, dim, wide=heads * batch <= _processors(q)),
            **OPTIONS,
        )
    return y


def tile(time: int, dim: int, *, wide: bool) -> dict[str, int]:
    """The sizes that a step is compiled for.

    wide  A program has a processor to itself.
    """
    queries, whole = triton.next_power_of_2(time), triton.next_power_of_2(dim)
    slots = min(SLOTS, max(8, PRODUCTS // (queries * whole)))
    return {
        "TIME": time,
        "DIM": dim,
        "QUERIES": queries,
        "WHOLE": whole,
        "SLOTS": slots * WIDE if wide else slots,
        "STAGES": STAGES,
        "num_warps": WARPS * WIDE if wide else WARPS,
    }


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


@triton.jit
def _turned(x, cos, sin, at, angle, number, there, DIM: tl.constexpr):
    """New vectors, turned: pairs (i, i + DIM / 2), each number with its partner.

    x, at            The vectors' memory, and where in it each begins.
    cos, sin, angle  That of the angles.
    number           Of all numbers of a head.
    """
    HALF: tl.constexpr = DIM // 2
    first = number < HALF
    pair = tl.where(first, number, number - HALF)
    own = tl.load(x + at + number, mask=there, other=0.0).to(tl.float32)
    partner = tl.load(x + at + tl.where(first, number + HALF, pair), mask=there, other=0.0)
    c = tl.load(cos + angle + pair, mask=there, other=0.0)
    s = tl.load(sin + angle + pair, mask=there, other=0.0)
    return own * c + partner.to(tl.float32) * tl.where(first, -s, s)


@triton.jit
def ring_attention_kernel(
    q,
    k,
    v,
    keys,
    values,
    cos,
    sin,
    position,
    active,
    lanes,
    y,
    q_lane,
    q_head,
    q_time,
    k_lane,
    k_head,
    k_time,
    v_lane,
    v_head,
    v_time,
    y_lane,
    y_head,
    y_time,
    window,
    scale,
    CAPACITY: tl.constexpr,
    MASKED: tl.constexpr,
    INDEXED: tl.constexpr,
    TIME: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    WHOLE: tl.constexpr,
    SLOTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One head of one lane.

    New keys and values are attended to from registers, and what the ring held before from the
    ring: no query sees a slot that this launch writes, so nothing waits for the writes. The ring is
    read from its newest slot back, as far as any query sees.

    Each of the SLOTS columns of the tiles has a softmax of its own, of which the last lines make
    one: within the loop, numbers are only added up along a head.
    """
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    # Three axes everywhere: queries, keys, numbers of a head.
    number = tl.arange(0, WHOLE)[None, None, :]
    query = tl.arange(0, QUERIES)[:, None, None]
    new = tl.arange(0, QUERIES)[None, :, None]
    asked = (query < TIME) & (number < DIM)
    there = (new < TIME) & (number < DIM)
    out = y + row * y_lane + head * y_head + query * y_time + number
    idle = False
    if MASKED:
        idle = tl.load(active + row) == 0
    if idle:
        tl.store(out, tl.zeros((QUERIES, 1, WHOLE), y.dtype.element_ty), mask=asked)
    else:
        # Query by query: the compiler lays the loop out as the first large load before it is, which
        # are to be the ring's.
        q_new = tl.zeros((QUERIES, 1, WHOLE), tl.float32)
        for index in tl.static_range(TIME):
            at = row * q_lane + head * q_head + index * q_time
            angle = (row * TIME + index) * (DIM // 2)
            one = _turned(q, cos, sin, at, angle, number, number < DIM, DIM) * scale
            q_new = tl.where(query == index, one, q_new)
        at = row * k_lane + head * k_head + new * k_time
        angle = (row * TIME + new) * (DIM // 2)
        k_new = _turned(k, cos, sin, at, angle, number, there, DIM)
        at = row * v_lane + head * v_head + new * v_time
        v_new = tl.load(v + at + number, mask=there, other=0.0)

        had_ever = tl.load(position + row)
        begin = (had_ever % CAPACITY).to(tl.int32)
        oldest = tl.minimum(had_ever, window - 1).to(tl.int32)
        lane = row
        if INDEXED:
            lane = tl.load(lanes + row)
        ring = (lane * tl.num_programs(0) + head) * CAPACITY * DIM
        keys += ring
        values += ring
        stored = keys.dtype.element_ty
        # As the ring holds them, so that a step sees what later ones will see.
        k_new = k_new.to(stored)
        v_new = v_new.to(stored)
        slot = (begin + new) % CAPACITY * DIM + number
        tl.store(keys + slot, k_new, mask=there)
        tl.store(values + slot, v_new, mask=there)

        # Not -inf: a column that sees nothing has differences, too.
        most = tl.full((QUERIES, SLOTS, 1), -1e30, tl.float32)
        total = tl.zeros((QUERIES, SLOTS, 1), tl.float32)
        mixed = tl.zeros((QUERIES, SLOTS, WHOLE), tl.float32)
        column = tl.arange(0, SLOTS)[None, :, None]
        for start in tl.range(0, oldest, SLOTS, num_stages=STAGES):
            # How long before the first query a slot's position lies.
            age = start + 1 + column
            held = begin - age
            held = tl.where(held < 0, held + CAPACITY, held) * DIM + number
            inside = (age <= oldest) & (number < DIM)
            k_old = tl.load(keys + held, mask=inside, other=0.0).to(tl.float32)
            v_old = tl.load(values + held, mask=inside, other=0.0).to(tl.float32)
            score = tl.sum(q_new * k_old, axis=2, keep_dims=True)
            # The oldest are too old for later queries.
            seen = (age <= oldest) & (age + query < window)
            score = tl.where(seen, score, float("-inf"))
            above = tl.maximum(most, score)
            shrink = tl.exp2(most - above)
            weight = tl.exp2(score - above)
            most = above
            total = total * shrink + weight
            mixed = mixed * shrink + weight * v_old

        # Every query sees itself at least, also those beyond TIME, which are not stored.
        score = tl.sum(q_new * k_new.to(tl.float32), axis=2, keep_dims=True)
        seen = (query >= new) & (query - new < window)
        score = tl.where(seen, score, float("-inf"))
        above = tl.max(most, axis=1, keep_dims=True)
        above = tl.maximum(above, tl.max(score, axis=1, keep_dims=True))
        weight = tl.exp2(score - above)
        shrink = tl.exp2(most - above)
        sums = tl.sum(total * shrink, axis=1, keep_dims=True)
        sums += tl.sum(weight, axis=1, keep_dims=True)
        mix = tl.sum(mixed * shrink, axis=1, keep_dims=True)
        mix += tl.sum(weight * v_new.to(tl.float32), axis=1, keep_dims=True)
        tl.store(out, (mix / sums).to(y.dtype.element_ty), mask=asked)
