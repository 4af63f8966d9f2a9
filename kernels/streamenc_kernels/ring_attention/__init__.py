"""Attention of a few new positions over a ring of keys and values that it also writes.

The ring of a lane holds window + max_step - 1 positions. A step of up to max_step positions writes
its keys and values ahead, in place, into slots that no query can see any more; only the position
that the caller commits makes them visible, so a lane whose position stays was not harmed. With
fewer slots a step would overwrite keys that its own first query still needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton
from streamenc_kernels.ring_attention.definition import (
    RingPlan,
    causal_bias,
    ring_attention_torch,
    rotary,
)
from streamenc_kernels.rotary_table import rotary_table

# Queries of a step, and numbers of a head, that the kernel keeps in registers.
MAX_STEP, MAX_HEAD_DIM = 8, 256


def plan_ring(
    position: Tensor,
    time: int,
    keys: Tensor,
    window: int,
    theta: float,
    *,
    active: Tensor | None = None,
    lanes: Tensor | None = None,
    implementation: Implementation | None = None,
) -> RingPlan:
    """What a step of `time` positions needs beside each layer's own tensors.

    position        (batch,) int64, how many positions each lane has had.
    keys            The ring of one layer, (batch, heads, capacity, head_dim), for its form.
    theta           Base of the rotary frequencies.
    active          (batch,) bool: the ring of a lane that is not stays as it is, to the bit, and
                    its output is 0. None writes ahead for all lanes, which is not visible either.
    lanes           (batch,) int64: row b of the batch has ring lanes[b], of any number of rings. No
                    two rows have one ring, but for one that nobody reads. None: row b has ring b.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Raises ValueError where the ring is too short, RuntimeError for a choice that cannot run.
    """
    capacity, head_dim = keys.shape[2:]
    if not 1 <= time <= capacity - window + 1:
        raise ValueError(
            f"{time} new positions; a ring of {capacity} for a window of {window} takes 1 to "
            f"{capacity - window + 1} at once"
        )
    if takes_triton(
        "ring_attention", keys.device, implementation, lambda: cannot_attend(keys, time)
    ):
        # Once for all layers: the kernel reads them as they lie.
        position = position.contiguous()
        cos, sin = rotary_table(position, time, head_dim, theta, implementation="triton")
        lanes = None if lanes is None else lanes.contiguous()
        return RingPlan(position, cos, sin, window, active, lanes, None, None)
    positions = position[:, None] + torch.arange(time, device=position.device)
    cos, sin = rotary(positions, head_dim, theta, keys.dtype)
    newest = positions[:, -1:]
    # Slot s holds the newest position that is congruent to s and not past the last one written.
    held = newest - (newest - torch.arange(capacity, device=position.device)) % capacity
    slots = (positions % capacity)[:, None, :, None]
    bias = causal_bias(positions, held, window, keys.dtype)
    return RingPlan(position, cos, sin, window, active, lanes, slots, bias)


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: RingPlan
) -> Tensor:
    """Rotates q and k, writes k and v into the ring in place, and attends to the ring.

    q, k, v       (batch, heads, time, head_dim), of the new positions.
    keys, values  (batch, heads, capacity, head_dim), the ring; keys are held rotated. Where the
                  plan has `lanes`, of any number of them instead of the batch.
    plan          From `plan_ring`, which also chose the implementation.
    Returns (batch, heads, time, head_dim) in the dtype of q.
    Raises ValueError for shapes that do not fit.
    """
    _check(q, k, v, keys, values, plan)
    if plan.bias is None:
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.ring_attention.triton import attend

        return attend(q, k, v, keys, values, plan)
    return ring_attention_torch(q, k, v, keys, values, plan)


def cannot_attend(keys: Tensor, time: int) -> str:
    """Why the Triton kernel cannot run for rings like `keys`; "" where it can."""
    return cannot_triton(keys.device) or _misfit(keys, time)


def _misfit(keys: Tensor, time: int) -> str:
    head_dim = keys.shape[3]
    if keys.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the ring is {keys.dtype}"
    if time > MAX_STEP:
        return f"{time} new positions at once; it takes up to {MAX_STEP}"
    if head_dim % 2 or head_dim > MAX_HEAD_DIM:
        return f"heads of {head_dim}; it takes even ones up to {MAX_HEAD_DIM}"
    if not keys.is_contiguous():
        return "the ring is not contiguous"
    return ""


def _check(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, plan: RingPlan) -> None:
    batch, heads, time, dim = q.shape
    lanes = batch if plan.lanes is None else keys.shape[0]
    ring = (lanes, heads, keys.shape[2], dim)
    if k.shape != q.shape or v.shape != q.shape or keys.shape != ring or values.shape != ring:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, keys "
            f"{tuple(keys.shape)} and values {tuple(values.shape)} do not fit: wanted (batch, "
            "heads, time, head_dim) thrice and (batch, heads, capacity, head_dim) twice"
        )
    if plan.cos.shape != (batch, 1, time, dim // 2):
        raise ValueError(f"the plan is for {tuple(plan.cos.shape)}, not for q {tuple(q.shape)}")
    if plan.lanes is not None and plan.lanes.shape != (batch,):
        raise ValueError(f"the plan's lanes are {tuple(plan.lanes.shape)}; wanted ({batch},)")
