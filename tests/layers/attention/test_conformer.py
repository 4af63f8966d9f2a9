"""Conformer blocks over chunks, against scores of every distance under an explicit mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.layers.attention.chunked import chunk_mask
from streamenc.layers.attention.conformer import ConformerBlock
from tests.support import references
from tests.support.compare import assert_close, poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

WIDTH, HEADS = 20, 5


def block(chunk: int, left: int, *, prepared: bool = False) -> ConformerBlock:
    made = ConformerBlock(WIDTH, HEADS, 33, chunk, left=left, kernel=5, bias=True, conv_bias=True)
    references.randomise(made)
    made = made.double().requires_grad_(False)
    if prepared:
        made.attention.prepare()
    return made


def noise(batch: int, time: int) -> Tensor:
    generator = torch.Generator().manual_seed(time)
    return torch.randn(batch, WIDTH, time, generator=generator, dtype=torch.float64)


def definition(layer: ConformerBlock, x: Tensor) -> Tensor:
    """All frames at once, each pair's score with what its distance gives."""
    own = layer.attention
    x = x.transpose(1, 2)
    x = x + 0.5 * layer.feed1(x)
    frames = x.shape[1]
    q, k, v = (
        part.unflatten(2, (HEADS, -1)).transpose(1, 2)
        for part in own.in_proj(layer.norm_attention(x)).chunk(3, dim=2)
    )
    distance = (torch.arange(frames)[:, None] - torch.arange(frames)).double()
    angles = distance[..., None] * 10_000 ** (-torch.arange(0, WIDTH, 2).double() / WIDTH)
    r = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(2) @ own.relative.T
    r = r.unflatten(2, (HEADS, -1)).permute(2, 0, 1, 3)
    scores = torch.einsum("bhid,bhjd->bhij", q + own.bias_u[:, None], k)
    scores = scores + torch.einsum("bhid,hijd->bhij", q + own.bias_v[:, None], r)
    mask = chunk_mask(frames, own.chunk, own.left)
    weights = (scores / (WIDTH // HEADS) ** 0.5).masked_fill(~mask, float("-inf")).softmax(-1)
    x = x + own.out_proj((weights @ v).transpose(1, 2).flatten(2))
    y = F.glu(layer.pointwise1(layer.norm_conv(x)), dim=-1).transpose(1, 2)
    y = F.conv1d(F.pad(y, (4, 0)), layer.depthwise.weight, layer.depthwise.bias, groups=WIDTH)
    x = x + layer.pointwise2(F.silu(layer.norm_depthwise(y.transpose(1, 2))))
    return layer.norm(x + 0.5 * layer.feed2(x)).transpose(1, 2)


@pytest.mark.parametrize(("chunk", "left"), [(1, 5), (3, 2), (4, 0), (7, 1)])
@pytest.mark.parametrize("time", [1, 4, 42, 61])
def test_whole(chunk, left, time):
    layer, x = block(chunk, left), noise(2, time)
    assert_close(layer(x), definition(layer, x), 1e-12)


@pytest.mark.parametrize(("chunk", "left"), [(1, 5), (3, 2), (4, 0)])
@pytest.mark.parametrize("tail", [0, 1])
def test_in_steps(chunk, left, tail):
    layer = block(chunk, left, prepared=True)
    sizes = [chunk, 2 * chunk, chunk, 5 * chunk, *[chunk] * 6, tail]
    x, state, ours = noise(3, sum(sizes)), None, []
    for index, piece in enumerate(x.split(sizes, dim=-1)):
        y, state = layer.step(piece, state, end=index == len(sizes) - 1)
        assert y.shape == piece.shape
        ours.append(y)
    assert_close(torch.cat(ours, dim=-1), definition(layer, x), 1e-12)


def test_a_short_chunk_in_mid_stream_is_our_own_mistake():
    with pytest.raises(AssertionError, match="4 frames in mid-stream; a chunk has 3"):
        block(3, 1).step(noise(1, 4), None)
