"""The transformer whose layers see ahead, against torch's attention with an explicit mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.layers.attention.lookahead import LookaheadTransformer, window_mask
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

WIDTH, HEADS = 20, 5
WINDOWS = [[(5, 3), (4, 0), (6, 2)], [(3, 0), (0, 0)], [(0, 0), (70, 4), (2, 1)]]


def transformer(windows: list[tuple[int, int]], **options: object) -> LookaheadTransformer:
    layer = LookaheadTransformer(WIDTH, HEADS, 33, windows, **options)
    references.randomise(layer)
    return layer.double().requires_grad_(False)


def noise(batch: int, time: int) -> Tensor:
    generator = torch.Generator().manual_seed(time)
    return torch.randn(batch, WIDTH, time, generator=generator, dtype=torch.float64)


def definition(layer: LookaheadTransformer, x: Tensor) -> Tensor:
    """All positions at once, each layer under its mask."""
    x = x.transpose(1, 2)
    for block, window in zip(layer.layers, layer.windows, strict=True):
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for part in block.in_proj(block.norm1(x)).chunk(3, dim=2)
        )
        mask = window_mask(x.shape[1], *window)
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        x = x + block.out_proj(y)
        x = x + block.linear2(F.gelu(block.linear1(block.norm2(x))))
    return layer.norm(x).transpose(1, 2)


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("time", [1, 2, 5, 6, 64, 123, 200])
def test_whole(windows, time):
    layer, x = transformer(windows), noise(2, time)
    assert_close(layer(x), definition(layer, x), 1e-12)


@pytest.mark.parametrize("windows", WINDOWS, ids=str)
@pytest.mark.parametrize("sizes", [[1], [2, 1], [3, 7, 1], [90]], ids=str)
@pytest.mark.parametrize("tail", [0, 1, 5])
def test_in_steps(windows, sizes, tail):
    """Steps in place and in blocks, and ends that find positions waiting."""
    layer = transformer(windows, max_step=2)
    lead, state, ours = layer.steps.lead, None, []
    lengths = [lead, *(sizes * 100)[: 100 // sum(sizes) * len(sizes)], tail]
    x = noise(3, sum(lengths))
    for index, piece in enumerate(x.split(lengths, dim=-1)):
        last = index == len(lengths) - 1
        y, state = layer.step(piece, state, end=last)
        assert last or y.shape[-1] == lengths[index] - (lead - 1 if not index else 0)
        ours.append(y)
    assert_close(torch.cat(ours, dim=-1), definition(layer, x), 1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_sizes_of_heads_and_biases(bias):
    layer = transformer(WINDOWS[0], head_dim=6, attention_bias=bias, norm_bias=bias)
    assert layer.layers[0].in_proj.weight.shape == (3 * HEADS * 6, WIDTH)
    assert (layer.layers[0].in_proj.bias is not None) == (layer.norm.bias is not None) == bias
    x = noise(1, 40)
    assert_close(layer(x), definition(layer, x), 1e-12)


def test_an_empty_stream():
    assert transformer(WINDOWS[0])(noise(2, 0)).shape == (2, WIDTH, 0)
