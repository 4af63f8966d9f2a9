"""A linear layer for few rows, on weights that are packed once.

At the two rows of a live step a linear layer is bound by reading its weight. The BLAS behind
torch's `linear` reads it at 7 to 12 GB/s there; oneDNN on prepacked weights at about 28 GB/s
(2-core x86-64, float32).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_linear(x: Tensor, weight: Tensor, packed: Tensor | None = None) -> Tensor:
    """x @ weight.T, (..., in) -> (..., out).

    packed  What `pack_linear` made of `weight`; None computes the plain definition.
    """
    if packed is None:
        return F.linear(x, weight)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return y


def pack_linear(weight: Tensor) -> Tensor | None:
    """`weight` (out, in) packed for `packed_linear`, or None where `cannot_pack` has a reason."""
    if cannot_pack(weight):
        return None
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
    return packed


def cannot_pack(weight: Tensor) -> str:
    """Why the packed path cannot run; "" where it can."""
    if weight.device.type != "cpu":
        return f"the weight is on {weight.device}, packing is for the CPU"
    if weight.dtype != torch.float32:
        return f"the weight is {weight.dtype}, packing is for float32"
    return _missing_ops()


@functools.cache
def _missing_ops() -> str:
    """The two operators are internal to torch: a release without them takes the plain path."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch is built without oneDNN"
    ops = ("_reorder_linear_weight", "_linear_pointwise")
    missing = [op for op in ops if not hasattr(torch.ops.mkldnn, op)]
    if missing:
        return f"this torch has no {', '.join(missing)}"
    weight, x = torch.eye(3), torch.arange(6.0).view(2, 3)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    except (RuntimeError, TypeError) as error:
        return f"this torch's oneDNN operators differ: {str(error).splitlines()[0]}"
    return "" if torch.equal(x, y) else "this torch's oneDNN operators give other values"
