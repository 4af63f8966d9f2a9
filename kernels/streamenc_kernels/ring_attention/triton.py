"""The Triton kernel of `ring_attention`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

from streamenc_kernels.ring_attention.definition import RingPlan

# A tile: so many slots at most, and so many products of new positions x slots x numbers of a head,
# which fit into registers. Loads run STAGES - 1 tiles ahead.
SLOTS, PRODUCTS, STAGES = 32, 4096, 4
# Fused multiply-adds are what the definition's products do as well.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


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
            dim**-0.5,
            CAPACITY=capacity,
            MASKED=plan.active is not None,
            INDEXED=plan.lanes is not None,
            **tile(time, dim),
            **OPTIONS,
        )
    return y


def tile(time: int, dim: int) -> dict[str, int]:
    """The sizes that a step is compiled for."""
    queries, half = triton.next_power_of_2(time), triton.next_power_of_2(dim // 2)
    return {
        "TIME": time,
        "DIM": dim,
        "QUERIES": queries,
        "HALF": half,
        "SLOTS": min(SLOTS, max(8, PRODUCTS // (queries * 2 * half))),
        "STAGES": STAGES,
    }


@triton.jit
def _rotated(x, at, cos, sin, there, DIM: tl.constexpr):
    """Both halves of new vectors, turned."""
    first = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    second = tl.load(x + at + DIM // 2, mask=there, other=0.0).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin


@triton.jit
def _attend(q_first, q_second, k_first, k_second, v, seen, most, total, mixed):
    """Softmax so far, with more keys in it.

    Queries (QUERIES, HALF) and keys (keys, HALF) come in halves; v is (keys, 2 * HALF). most,
    total and mixed are the largest score, the sum of exp(score - most), and that of the values.
    """
    products = q_first[:, None, :] * k_first[None, :, :]
    products += q_second[:, None, :] * k_second[None, :, :]
    score = tl.where(seen, tl.sum(products, axis=2), float("-inf"))
    above = tl.maximum(most, tl.max(score, axis=1))
    weight = tl.exp(score - above[:, None])
    shrink = tl.exp(most - above)
    total = total * shrink + tl.sum(weight, axis=1)
    mixed = mixed * shrink[:, None] + tl.sum(weight[:, :, None] * v[None, :, :], axis=1)
    return above, total, mixed


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
    HALF: tl.constexpr,
    SLOTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One head of one lane.

    New keys and values are attended to from registers, and what the ring held before from the
    ring: no query sees a slot that this launch writes, so nothing waits for the writes.
    """
    head = tl.program_id(0)
    lane = tl.program_id(1).to(tl.int64)
    query = tl.arange(0, QUERIES)
    half = tl.arange(0, HALF)
    whole = tl.arange(0, 2 * HALF)
    new = query < TIME
    in_half = new[:, None] & (half < DIM // 2)[None, :]
    in_whole = new[:, None] & (whole < DIM)[None, :]
    out = y + lane * y_lane + head * y_head + query[:, None] * y_time + whole[None, :]
    idle = False
    if MASKED:
        idle = tl.load(active + lane) == 0
    if idle:
        tl.store(out, tl.zeros((QUERIES, 2 * HALF), y.dtype.element_ty), mask=in_whole)
    else:
        angle = (lane * TIME + query[:, None]) * (DIM // 2) + half[None, :]
        c = tl.load(cos + angle, mask=in_half, other=0.0)
        s = tl.load(sin + angle, mask=in_half, other=0.0)
        at = lane * q_lane + head * q_head + query[:, None] * q_time + half[None, :]
        q_first, q_second = _rotated(q, at, c, s, in_half, DIM)
        at = lane * k_lane + head * k_head + query[:, None] * k_time + half[None, :]
        k_first, k_second = _rotated(k, at, c, s, in_half, DIM)
        at = lane * v_lane + head * v_head + query[:, None] * v_time + whole[None, :]
        v_new = tl.load(v + at, mask=in_whole, other=0.0)
        q_first *= scale
        q_second *= scale

        had_ever = tl.load(position + lane)
        begin = (had_ever % CAPACITY).to(tl.int32)
        had = tl.minimum(had_ever, CAPACITY).to(tl.int32)
        held_by = lane
        if INDEXED:
            held_by = tl.load(lanes + lane)
        ring = (held_by * tl.num_programs(0) + head) * CAPACITY * DIM
        keys += ring
        values += ring
        stored = keys.dtype.element_ty
        slot = ((begin + query) % CAPACITY)[:, None] * DIM
        tl.store(keys + slot + half[None, :], k_first.to(stored), mask=in_half)
        tl.store(keys + slot + half[None, :] + DIM // 2, k_second.to(stored), mask=in_half)
        tl.store(values + slot + whole[None, :], v_new.to(stored), mask=in_whole)

        most = tl.full((QUERIES,), float("-inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        mixed = tl.zeros((QUERIES, 2 * HALF), tl.float32)
        # As the ring holds them, so that a step sees what later ones will see.
        k_first = k_first.to(stored).to(tl.float32)
        k_second = k_second.to(stored).to(tl.float32)
        v_new = v_new.to(stored).to(tl.float32)
        # Every query sees itself at least, also those beyond TIME, which are not stored.
        older = query[:, None] - query[None, :]
        seen = (older >= 0) & (older < window)
        most, total, mixed = _attend(
            q_first, q_second, k_first, k_second, v_new, seen, most, total, mixed
        )
        for start in tl.range(0, CAPACITY, SLOTS, num_stages=STAGES):
            held = start + tl.arange(0, SLOTS)
            # How long before the first query a slot's position lies; at 0 it is the oldest, dead.
            age = (begin + CAPACITY - held) % CAPACITY
            live = (held < CAPACITY) & (age >= 1) & (age <= had) & (age < window)
            pair = held[:, None] * DIM + half[None, :]
            inside = live[:, None] & (half < DIM // 2)[None, :]
            old_first = tl.load(keys + pair, mask=inside, other=0.0).to(tl.float32)
            old_second = tl.load(keys + pair + DIM // 2, mask=inside, other=0.0).to(tl.float32)
            inside = live[:, None] & (whole < DIM)[None, :]
            v_old = tl.load(values + held[:, None] * DIM + whole[None, :], mask=inside, other=0.0)
            seen_old = live[None, :] & (age[None, :] + query[:, None] < window)
            most, total, mixed = _attend(
                q_first,
                q_second,
                old_first,
                old_second,
                v_old.to(tl.float32),
                seen_old,
                most,
                total,
                mixed,
            )
        tl.store(out, (mixed / total[:, None]).to(y.dtype.element_ty), mask=in_whole)
