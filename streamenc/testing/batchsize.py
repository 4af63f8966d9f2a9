"""A stream in batches of other sizes: how far its numbers move, as libraries choose other sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streamenc.models.model import Model
from streamenc.models.signal import values
from streamenc.state import State
from streamenc.testing.comparison import relative_error
from streamenc_kernels import FullFloat32


class BatchDifference(NamedTuple):
    """Of one stream in a batch, against the same one alone.

    Attributes:
        lanes: Streams in the batch.
        error: The largest difference of what `step` gives, relative to the largest value.
        codes: Codes that differ; 0 of a model without any.
        of: All codes.
    """

    lanes: int
    error: float
    codes: int
    of: int


def batch_differences(model: Model, signals: Tensor, lanes: Sequence[int]) -> list[BatchDifference]:
    """Steps the first of some streams alone, and as the first lane of batches of each size.

    On whatever device the model is. Where the batch keeps its size, the numbers of a lane do not
    depend on what is in the others; between sizes they agree to rounding, since products are summed
    in another order.

    Args:
        signals: As `random_signal` gives them, of as many streams as the largest batch has; of a
            first step and some more.
    """
    alone, wanted = _outputs(model, signals[:1])
    found = []
    for count in lanes:
        latents, codes = _outputs(model, signals[:count])
        different = int((codes != wanted).sum()) if model.spec.output.kind == "codes" else 0
        of = wanted.numel() if model.spec.output.kind == "codes" else 0
        found.append(BatchDifference(count, relative_error(latents, alone), different, of))
    return found


def _outputs(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the first lane: what its steps give, and what users get of it."""
    spec = model.spec
    state: State = None
    latents, given = [], []
    with torch.inference_mode(), FullFloat32(model.like.device.type):
        start, size = 0, spec.lead
        while start + size <= x.shape[2]:
            y, state = model.step(model.before(x[:, :, start : start + size]), state)
            latents.append(y[:1].clone())
            given.append(values(model.after(y))[:1])
            start, size = start + size, spec.hop
    return torch.cat(latents, dim=2), torch.cat(given, dim=2)
