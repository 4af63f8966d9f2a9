"""Attention over video along one axis at a time: within each frame, or along time at each place.

They take and give (batch, time, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.errors import InputError
from streamenc.layers.attention.ring import InBlocks, InPlace, Ring
from streamenc.layers.streamed import Span, Streamed
from streamenc.layers.video.causal3d import FrameConv, FrameNorm
from streamenc.spec import Steps
from streamenc.state import State


class _Projections(nn.Module):
    """What both attentions have: one head over all channels, behind a normalisation."""

    def __init__(self, channels: int, norm: Callable[[int], nn.Module] = FrameNorm) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.to_q = FrameConv(channels, channels)
        self.to_k = FrameConv(channels, channels)
        self.to_v = FrameConv(channels, channels)
        self.to_out = FrameConv(channels, channels)

    def projected(self, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of (..., channels).

        Contiguous, as the fast kernels of attention want them: with channels that lie apart, torch
        writes scaled copies of all keys.
        """
        places = places.contiguous()
        q, k, v = (_pointwise(places, conv) for conv in (self.to_q, self.to_k, self.to_v))
        return q, k, v


def _pointwise(x: Tensor, conv: FrameConv) -> Tensor:
    """A convolution of kernel 1, over (..., channels)."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


class SpatialAttention(_Projections):
    """Every place of a frame sees all places of the same frame."""

    def forward(self, x: Tensor) -> Tensor:
        # (frames, 1, places, channels)
        q, k, v = self.projected(self.norm(x).flatten(0, 1).flatten(2).transpose(1, 2)[:, None])
        y = _pointwise(F.scaled_dot_product_attention(q, k, v), self.to_out)
        return x + y[:, 0].transpose(1, 2).reshape(x.shape)


class TemporalAttention(_Projections, Streamed):
    """Every place sees the same place of the last `window` frames, its own among them.

    No positions are added. With `growing`, the stream may have no more than `window` frames: so all
    of them are seen, as in attention without a window, and the ring never turns.

    Steps of up to `max_step` frames write their keys and values ahead, in place, into slots that no
    query can see any more; longer ones return new rings.

    State: position (batch,) int64; keys and values (batch, places, capacity, channels).
    """

    def __init__(self, channels: int, window: int, *, max_step: int = 1, growing: bool = False):
        super().__init__(channels)
        slots = window if growing else window + max_step - 1
        self.ring = Ring(window, slots, growing, block=max(window, 16))

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return (None if self.ring.growing else max(0, first - self.ring.window + 1)), last

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        time = x.shape[1]
        # (batch, places, time, channels)
        q, k, v = self.projected(self.norm(x).flatten(3).permute(0, 3, 1, 2))
        if isinstance(state, tuple):
            position, keys, values = state
        else:
            position = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            keys, values = self.ring.empty(k)
        assert isinstance(position, Tensor)
        assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        plan: InPlace | InBlocks
        filled = self._filled(position, time) if self.ring.growing else None
        if time <= self.ring.max_step:
            plan = self.ring.in_place(position, time, x.dtype, filled=filled)
        else:
            plan = self.ring.in_blocks(position, time, time, x.dtype)
        y, keys, values = plan.attend(q, k, v, keys, values)
        y = _pointwise(y, self.to_out).permute(0, 2, 3, 1).reshape(x.shape)
        return x + y, (position + time, keys, values)

    def _filled(self, position: Tensor, time: int) -> int:
        """How many slots hold anything in any lane. Raises InputError where there is no room."""
        # On a GPU a look at the position would wait for the device; streams count for themselves.
        first, last = (0, self.ring.window) if position.is_cuda else map(int, position.aminmax())
        # An idle lane that is full is computed along: nobody will ask it for more.
        if first + time > self.ring.window:
            raise InputError(
                f"{first + time} frames at the attention along time; mode='offline' was loaded for "
                f"{self.ring.window}: load with a higher limit, or with mode='window'"
            )
        return min(last + time, self.ring.window)
