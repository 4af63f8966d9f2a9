"""What `fused_linear` means, in plain torch, and the norm that it and its kernel take."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch.nn.functional as F
from torch import Tensor

Activation: TypeAlias = Literal["gelu", "swiglu"]


class RowNorm(NamedTuple):
    """A norm over the last axis, of (in,) numbers.

    kind  "layer": less the mean, over the standard deviation; "rms": over the root mean square.
    bias  None adds nothing.
    """

    kind: Literal["layer", "rms"]
    weight: Tensor
    bias: Tensor | None
    eps: float


def fused_linear_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: RowNorm | None,
    activation: Activation | None,
    residual: Tensor | None,
) -> Tensor:
    """The definition of `fused_linear`."""
    if norm is not None and norm.kind == "layer":
        x = F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    elif norm is not None:
        x = F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)
        x = x if norm.bias is None else x + norm.bias
    y = F.linear(x, weight, bias)
    if activation == "gelu":
        y = F.gelu(y)
    elif activation == "swiglu":
        gate, up = y.chunk(2, dim=-1)
        y = F.silu(gate) * up
    return y if residual is None else residual + y
