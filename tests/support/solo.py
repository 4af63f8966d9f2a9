"""What sessions gave beside what a stream by itself gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal
from streamenc.stream import Stream
from tests.support.compare import assert_close


def equals_solo(
    model: Model, inputs: Sequence[Signal | None], outputs: Sequence[tuple[Signal, int | None]]
) -> None:
    """Asserts that codes are the same, and all others up to rounding, in float64.

    inputs   What the stream was given; None for an end.
    outputs  What came, with the number of codebooks that was wanted; None for any.
    """
    solo = Stream(model)
    with torch.inference_mode():
        parts = [solo.flush() if x is None else solo.push(x) for x in inputs]
    whole = [torch.cat(part, dim=-1) for part in zip(*map(_tensors, parts), strict=True)]
    at = 0
    for output, codebooks in outputs:
        ours = list(_tensors(output))
        if codebooks is not None:
            assert ours[0].shape[1] == codebooks
        until = at + ours[0].shape[-1]
        for mine, theirs in zip(ours, whole, strict=True):
            if mine.is_floating_point():
                assert_close(mine, theirs[..., at:until], 1e-10)
            else:
                assert torch.equal(mine, theirs[:, : mine.shape[1], at:until])
        at = until
    assert at == whole[0].shape[-1], "something is missing"


def _tensors(y: Signal) -> Iterator[Tensor]:
    yield from y if isinstance(y, Scaled) else (y,)
