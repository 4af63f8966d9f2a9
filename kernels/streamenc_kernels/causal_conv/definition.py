"""What `causal_conv` means, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv_torch(
    x: Tensor,
    state: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    elu: bool = False,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The definition of `causal_conv`."""
    if elu:
        x = F.elu(x)
    whole = x if state is None else torch.cat((state, x), dim=-1)
    y = F.conv1d(whole, weight, bias, stride, 0, dilation, x.shape[1] // weight.shape[1])
    if residual is not None:
        y = y + residual
    return y, None if state is None else whole[..., x.shape[-1] :].contiguous()
