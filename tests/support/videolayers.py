"""Layers over video with weights, frames for them, and what all of them keep to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from streamenc import state as states
from streamenc.layers.streamed import Streamed
from tests.support.compare import assert_close


def made(make: Callable[[], Streamed]) -> Streamed:
    layer = make().double()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.Parameter.requires_grad_(parameter, False)
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator).double())
    return layer


def frames(count: int, *, batch: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((batch, count, 6, 4, 8), generator=generator, dtype=torch.float64)


def assert_steps_equal_the_whole(layer: Streamed, sizes: list[int]) -> None:
    """Steps of so many frames each give what one step gives for all of them."""
    x = frames(sum(sizes))
    state: states.State = None
    outputs = []
    for part in x.split(sizes, dim=1):
        y, state = layer.step(part, state)
        outputs.append(y)
    assert_close(torch.cat(outputs, dim=1), layer(x), 1e-12)
