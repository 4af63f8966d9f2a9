"""Layers over video: step by step they give what they give at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc import state as states
from streamenc.errors import InputError
from streamenc.layers.streamed import Streamed
from streamenc.layers.video.video import (
    Downsample,
    Factorised,
    FrameConv,
    Patch,
    TemporalAttention,
    TemporalConv,
    Unpatch,
    Upsample,
    VideoResidual,
)
from tests.support.compare import assert_close, poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

# A layer over 6 channels, and how many frames its steps take after the first one.
LAYERS: dict[str, tuple[Callable[[], Streamed], int]] = {
    "conv": (lambda: TemporalConv(6, 4), 1),
    "strided": (lambda: TemporalConv(6, 4, stride=2), 2),
    "factorised": (lambda: Factorised(6, 4), 1),
    "residual": (lambda: VideoResidual(6, 4), 1),
    "images": (lambda: VideoResidual(6, 4, groups=2), 1),
    "down": (lambda: Downsample(6, space=True, time=True), 2),
    "down in time": (lambda: Downsample(6, space=False, time=True), 2),
    "up": (lambda: Upsample(6, space=True, time=True), 1),
    "up in space": (lambda: Upsample(6, space=True, time=False), 1),
    "growing": (lambda: TemporalAttention(6, 40, growing=True), 1),
    "window": (lambda: TemporalAttention(6, 5), 1),
    "window by two": (lambda: TemporalAttention(6, 5, max_step=2), 2),
    "patch": (lambda: Patch(4), 4),
}


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


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("steps", [[1] * 30, [3, 1, 7, 19]])
def test_steps_equal_the_whole(name, steps):
    make, unit = LAYERS[name]
    layer = made(make)
    sizes = [1, *(unit * step for step in steps)]
    x = frames(sum(sizes))
    state: states.State = None
    outputs = []
    for part in x.split(sizes, dim=1):
        y, state = layer.step(part, state)
        outputs.append(y)
    assert_close(torch.cat(outputs, dim=1), layer(x), 1e-12)


def test_attention_is_that_of_a_mask():
    layer = made(lambda: TemporalAttention(6, 5))
    x = frames(12)
    y = x.flatten(3).permute(0, 3, 1, 2)  # (batch, places, time, channels)
    normed = F.layer_norm(x, x.shape[2:], eps=1e-6)
    normed = normed * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
    q, k, v = (
        F.linear(normed.movedim(2, -1), conv.weight[..., 0, 0], conv.bias).flatten(2, 3)
        for conv in (layer.to_q, layer.to_k, layer.to_v)
    )
    back = torch.arange(12)[:, None] - torch.arange(12)
    scores = torch.einsum("btpc,bspc->bpts", q, k) / 6**0.5
    scores = scores.masked_fill((back < 0) | (back >= 5), -torch.inf)
    seen = torch.einsum("bpts,bspc->bptc", scores.softmax(-1), v)
    y = y + F.linear(seen, layer.to_out.weight[..., 0, 0], layer.to_out.bias)
    assert_close(layer(x).flatten(3).permute(0, 3, 1, 2), y, 1e-12)


def test_lanes_at_different_positions_and_idle_ones():
    layer = made(lambda: TemporalAttention(6, 4, max_step=1))
    x = frames(20, batch=3)
    whole = layer(x)
    pool = states.allocate(layer.step(x[:1, :1], None)[1], 3)
    at = []
    for i in range(3):  # each has gone another way already
        _, one = layer.step(x[i : i + 1, : 3 * i + 1], None)
        states.put_lane(pool, i, one)
        at.append(3 * i + 1)
    for turn in range(12):
        active = torch.tensor([(turn + i) % 3 > 0 for i in range(3)])
        now = torch.stack([x[i, at[i]] for i in range(3)])[:, None]
        y, new = layer.step(torch.where(active.view(-1, 1, 1, 1, 1), now, 0), pool)
        states.commit(pool, new, active)
        for i in range(3):
            if active[i]:
                assert_close(y[i, 0], whole[i, at[i]], 1e-12)
                at[i] += 1


def test_more_frames_than_a_growing_attention_has_room_for():
    layer = made(lambda: TemporalAttention(6, 4, growing=True))
    with pytest.raises(InputError, match="5 frames"):
        layer(frames(5))
    _, state = layer.step(frames(4), None)
    with pytest.raises(InputError, match="5 frames"):
        layer.step(frames(1), state)


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_unpatch_is_the_inverse_of_patch(images, size):
    count = 5 if images else 1 + 3 * size
    x = frames(count)[:, :, :3]
    there = Patch(size, images=images).double()
    back = Unpatch(size, images=images).double()
    y = there(x)
    assert y.shape[2] == 3 * size ** (2 if images else 3)
    assert_close(back(y), x, 1e-6)  # the wavelet is rounded to float32
    _, state = back.step(y[:, :1], None)
    assert_close(back.step(y[:, 1:], state)[0], x[:, 1:], 1e-6)


def test_the_low_band_is_the_mean():
    x = frames(9)[:, :, :3]
    y = Patch(4).double()(x)
    blocks = torch.cat((x[:, :1].expand(-1, 3, -1, -1, -1), x), dim=1)
    means = F.avg_pool3d(blocks.transpose(1, 2), 4).transpose(1, 2)
    assert_close(y[:, :, :3], means, 1e-6)


def test_a_single_frame_is_not_doubled():
    x = frames(1)
    assert made(LAYERS["up"][0])(x).shape == (2, 1, 6, 8, 16)
    assert made(LAYERS["down"][0])(x).shape == (2, 1, 6, 2, 4)
    assert made(LAYERS["up"][0])(frames(4)).shape[1] == 7


def test_stride_two_halves_an_even_size():
    conv = FrameConv(6, 3, 3, stride=2).double()
    conv.weight.data.normal_()
    conv.bias.data.normal_()
    x = frames(2, batch=1)
    wanted = F.conv2d(F.pad(x[0], (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)
    assert_close(conv(x)[0].detach(), wanted.detach(), 1e-12)
