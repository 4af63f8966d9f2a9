"""The transformer over chunks, against torch's attention with an explicit mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc import state as states
from streamenc.layers.attention.chunked import ChunkedTransformer, chunk_mask
from tests.support.compare import assert_close, poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

WIDTH, HEADS, LAYERS = 20, 5, 3


def transformer(
    chunk: int, left: int, dtype: torch.dtype = torch.float64, **options: object
) -> ChunkedTransformer:
    layer = ChunkedTransformer(WIDTH, HEADS, 33, LAYERS, chunk, left=left, **options)
    layer = layer.to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        scale = 1.0 if parameter.ndim == 1 else parameter.shape[1] ** -0.5
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=dtype))
    return layer


def noise(batch: int, time: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, WIDTH, time, generator=generator, dtype=dtype)


def definition(
    layer: ChunkedTransformer, x: Tensor, *, masked: bool = True, mask: Tensor | None = None
) -> Tensor:
    """All frames at once, each layer under its mask."""
    given = mask
    x = x.transpose(1, 2)
    hidden = [x]
    for index, block in enumerate(layer.layers):

        def norm(x: Tensor, n: torch.nn.LayerNorm) -> Tensor:
            return F.layer_norm(x, (WIDTH,), n.weight, n.bias, n.eps)

        mask = chunk_mask(x.shape[1], layer.chunk, layer.left, ahead=index < layer.ahead)
        mask = mask if given is None else given
        h = norm(x, block.norm1) if block.norm_first else x
        q, k, v = (
            F.linear(h, w, b).view(*h.shape[:2], HEADS, -1).transpose(1, 2)
            for w, b in zip(block.in_proj.weight.chunk(3), block.in_proj.bias.chunk(3), strict=True)
        )
        weights = (q @ k.transpose(2, 3)) / q.shape[3] ** 0.5
        if masked:
            weights = weights.masked_fill(~mask, float("-inf"))
        y = (weights.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, block.out_proj.weight, block.out_proj.bias)
        x = x if block.norm_first else norm(x, block.norm1)
        h = norm(x, block.norm2) if block.norm_first else x
        h = F.gelu(F.linear(h, block.linear1.weight, block.linear1.bias))
        x = x + F.linear(h, block.linear2.weight, block.linear2.bias)
        x = x if block.norm_first else norm(x, block.norm2)
        hidden.append(x)
    if layer.norm is not None:
        hidden[-1] = norm(x, layer.norm)
    return torch.cat([hidden[n] for n in layer.outputs], dim=-1).transpose(1, 2)


def with_copies(layer: ChunkedTransformer, x: Tensor) -> Tensor:
    """The definition with look-ahead: each chunk with the frames behind it, copied.

    A copy sees what its chunk sees, and only its chunk sees it.
    """
    frames, at, of, own = x.shape[2], [], [], []
    for chunk in range(-(-frames // layer.chunk)):
        start, stop = chunk * layer.chunk, (chunk + 1) * layer.chunk
        seen = range(start, min(frames, stop + layer.lookahead))
        at += seen
        of += [chunk] * len(seen)
        own += [t < stop for t in seen]
    chunks, owned = torch.tensor(of), torch.tensor(own)
    distance = chunks[:, None] - chunks
    mask = (distance == 0) | ((distance > 0) & (distance <= layer.left) & owned)
    x = definition(layer, x[:, :, at], mask=mask)
    return x[:, :, owned]


def streamed(layer: ChunkedTransformer, x: Tensor, chunks: list[int]) -> Tensor:
    """The stream in steps of so many chunks, repeated; the first one also has the look-ahead."""
    y, state, start = [], None, 0
    sizes = [layer.chunk * (layer.ahead + chunks[0]) + layer.lookahead]
    while start + sizes[-1] <= x.shape[2]:
        part, state = layer.step(x[:, :, start : start + sizes[-1]], state)
        if len(sizes) > 1 or layer.lag == layer.ahead:
            late = layer.lag * layer.chunk + layer.lookahead
            assert part.shape[2] == sizes[-1] - (len(sizes) == 1) * late
        y.append(part)
        start += sizes[-1]
        sizes.append(layer.chunk * chunks[len(sizes) % len(chunks)])
    return torch.cat([*y, layer.step(x[:, :, start:], state, end=True)[0]], dim=2)


OPTIONS = [
    {"norm_first": True, "final_norm": True},
    {"norm_first": False},
    {"ahead": 1},
    {"ahead": 2, "norm_first": False, "outputs": (0, 1, 3)},
    {"ahead": 3, "outputs": (3, 2)},
    {"ahead": 2, "outputs": (1,)},
    {"outputs": (0, 2), "norm_first": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("chunk", "left"), [(4, 2), (5, 0), (1, 3), (3, 7)])
@pytest.mark.parametrize("time", [0, 1, 11, 40, 123])
def test_any_steps_equal_the_definition(options, chunk, left, time):
    layer = transformer(chunk, left, **options)
    x = noise(2, time)
    expected = definition(layer, x) if time else x.new_zeros(2, len(layer.outputs) * WIDTH, 0)
    for chunks in ([1], [2], [1, 3, 1, 1], [40]):
        assert_close(streamed(layer, x, chunks), expected, 1e-12)
    assert_close(layer(x), expected, 1e-12)


@pytest.mark.parametrize("lookahead", [1, 4, 6, 13])
@pytest.mark.parametrize(("chunk", "left"), [(4, 2), (5, 0), (1, 3), (3, 7)])
@pytest.mark.parametrize("time", [1, 11, 40, 123])
def test_look_ahead_equals_copies(lookahead, chunk, left, time):
    outputs = (0, 2, 3) if chunk == 4 else None
    layer = transformer(chunk, left, lookahead=lookahead, final_norm=True, outputs=outputs)
    x = noise(2, time)
    expected = with_copies(layer, x)
    for chunks in ([1], [2], [1, 3, 1, 1], [40]):
        assert_close(streamed(layer, x, chunks), expected, 1e-12)
    assert_close(layer(x), expected, 1e-12)


def test_whole_is_without_mask():
    layer = transformer(4, 2, final_norm=True, outputs=(1, 3))
    x = noise(2, 23)
    assert_close(layer.whole(x), definition(layer, x, masked=False), 1e-12)


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_nothing_beyond_the_mask_is_seen(ahead):
    """What comes out does not depend on later chunks, nor on those too long ago."""
    layer = transformer(4, 1, ahead=ahead)
    x, other = noise(1, 60), noise(1, 60, seed=2)
    far = 4 * (1 + ahead)
    after = torch.cat((x[:, :, : 20 + far], other[:, :, 20 + far :]), dim=2)
    assert torch.equal(layer(x)[:, :, :24], layer(after)[:, :, :24])
    assert not torch.equal(layer(x)[:, :, 24:28], layer(after)[:, :, 24:28])
    before = torch.cat((other[:, :, :24], x[:, :, 24:]), dim=2)
    reach = 24 + 4 * LAYERS
    assert torch.equal(layer(x)[:, :, reach:], layer(before)[:, :, reach:])


@pytest.mark.parametrize(("ahead", "lookahead"), [(0, 0), (2, 0), (0, 5)])
def test_lanes_of_different_age_and_idle_ones(ahead, lookahead):
    layer = transformer(3, 2, torch.float32, ahead=ahead, lookahead=lookahead, outputs=(1, 3))
    signals = [noise(1, 3 * 30, seed=seed, dtype=torch.float32) for seed in range(3)]
    ages = [ahead + 1, ahead + 4, ahead + 7]
    lanes = [
        layer.step(x[:, :, : 3 * age + lookahead], None)[1]
        for x, age in zip(signals, ages, strict=True)
    ]
    expected = [layer(x) for x in signals]
    pool = states.allocate(lanes[0], 3)
    for index, lane in enumerate(lanes):
        states.put_lane(pool, index, lane)
    for tick in range(16):
        active = torch.tensor([tick % 3 != 0, True, tick % 2 == 0])
        starts = [3 * age + lookahead for age in ages]
        x = torch.cat([s[:, :, t : t + 3] for s, t in zip(signals, starts, strict=True)])
        y, after = layer.step(x, pool)
        states.commit(pool, after, active)
        for index in active.nonzero().flatten().tolist():
            start = 3 * (ages[index] - ahead)
            assert_close(y[index : index + 1], expected[index][:, :, start : start + 3], 1e-5)
            ages[index] += 1


def test_a_step_of_one_chunk_writes_its_ring_in_place():
    layer = transformer(3, 2)
    x = noise(1, 9)
    state = layer.step(x[:, :, :3], None)[1]
    after = layer.step(x[:, :, 3:6], state)[1]
    rings = list(states.leaves(state))[1:]
    assert all(a is b for a, b in zip(rings, list(states.leaves(after))[1:], strict=True))
