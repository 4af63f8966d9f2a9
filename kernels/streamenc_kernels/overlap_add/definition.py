"""What `overlap_add` means, in plain torch."""

from __future__ import annotations

from torch import Tensor


def overlap_add_torch(
    pieces: Tensor, state: Tensor | None, bias: Tensor | None, stride: int
) -> tuple[Tensor, Tensor | None]:
    """The definition of `overlap_add`."""
    batch, time, channels, size = pieces.shape
    whole = pieces.new_zeros(batch, channels, (time - 1) * stride + size)
    for index in range(time):
        whole[..., index * stride : index * stride + size] += pieces[:, index]
    if state is not None:
        whole[..., : state.shape[-1]] += state
    y = whole[..., : time * stride]
    y = y.contiguous() if bias is None else y + bias[:, None]
    return y, None if size == stride else whole[..., time * stride :].contiguous()
