"""What `write_rows` means, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def write_rows_torch(
    pools: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    active: Tensor | None = None,
    lanes: Tensor | None = None,
) -> None:
    """The definition of `write_rows`, and what runs on the CPU."""
    for pool, value in zip(pools, values, strict=True):
        if active is not None:
            mask = active.view(-1, *([1] * (pool.ndim - 1)))
            before = pool if lanes is None else pool.index_select(0, lanes)
            if lanes is None:
                torch.where(mask, value, before, out=pool)
                continue
            value = torch.where(mask, value, before)
        if lanes is None:
            pool.copy_(value)
        else:
            pool.index_copy_(0, lanes, value)
