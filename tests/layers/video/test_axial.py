"""Attention along time: step by step it gives what a mask over all frames gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from streamenc import state as states
from streamenc.errors import InputError
from streamenc.layers.streamed import Streamed
from streamenc.layers.video.axial import TemporalAttention
from tests.support.compare import assert_close, poisoned_memory
from tests.support.videolayers import assert_steps_equal_the_whole, frames, made

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

# A layer over 6 channels, and how many frames its steps take after the first one.
LAYERS: dict[str, tuple[Callable[[], Streamed], int]] = {
    "growing": (lambda: TemporalAttention(6, 40, growing=True), 1),
    "window": (lambda: TemporalAttention(6, 5), 1),
    "window by two": (lambda: TemporalAttention(6, 5, max_step=2), 2),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("steps", [[1] * 30, [3, 1, 7, 19]])
def test_steps_equal_the_whole(name, steps):
    make, unit = LAYERS[name]
    assert_steps_equal_the_whole(made(make), [1, *(unit * step for step in steps)])


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
