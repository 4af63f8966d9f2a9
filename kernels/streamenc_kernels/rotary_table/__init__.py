"""cos and sin of the rotary embedding for the new positions of a step, in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton
from streamenc_kernels.ring_attention.definition import rotary


def rotary_table(
    position: Tensor,
    time: int,
    dim: int,
    theta: float,
    *,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles (position + t) theta^(-2 i / dim), float32.

    position        (batch,) int64, the first new position of each lane, from 0 up.
    time            New positions of each lane.
    dim             Of a head, even.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Returns two of (batch, 1, time, dim / 2).
    Raises RuntimeError for a choice that cannot run.
    """
    device = position.device
    if takes_triton("rotary_table", device, implementation, lambda: cannot_triton(device)):
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.rotary_table.triton import table

        return table(position.contiguous(), time, dim, theta)
    positions = position[:, None] + torch.arange(time, device=device)
    return rotary(positions, dim, theta, torch.float32)
