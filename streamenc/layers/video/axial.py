"""Attention over video along one axis at a time: within each frame, or along time at each place.

They take and give (batch, time, channels, height, width).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.errors import InputError
from streamenc.layers.streamed import Streamed
from streamenc.layers.video.causal3d import FrameConv, FrameNorm
from streamenc.state import State


class _Projections(nn.Module):
    """What both attentions have: one head over all channels, behind a normalisation."""

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.norm = FrameNorm(channels, groups)
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
        self.window, self.growing = window, growing
        self.max_step = window if growing else max_step
        self.capacity = window if growing else window + max_step - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, time, channels, height, width = x.shape
        if isinstance(state, tuple):
            position, keys, values = state
        else:
            position = torch.zeros(batch, dtype=torch.int64, device=x.device)
            shape = (batch, height * width, self.capacity, channels)
            keys, values = x.new_zeros(shape), x.new_zeros(shape)
        assert isinstance(position, Tensor)
        assert isinstance(keys, Tensor) and isinstance(values, Tensor)
        filled = self._filled(position, time) if self.growing else self.capacity
        # (batch, places, time, channels)
        q, k, v = self.projected(self.norm(x).flatten(3).permute(0, 3, 1, 2))
        now = position[:, None] + torch.arange(time, device=x.device)
        attend = self._ahead if time <= self.max_step else self._in_blocks
        y, keys, values = attend(q, k, v, keys, values, now, filled)
        y = _pointwise(y, self.to_out).permute(0, 2, 3, 1).reshape(x.shape)
        return x + y, (position + time, keys, values)

    def _filled(self, position: Tensor, time: int) -> int:
        """How many slots hold anything in any lane. Raises InputError where there is no room."""
        # On a GPU a look at the position would wait for the device; streams count for themselves.
        first, last = (0, self.window) if position.is_cuda else map(int, position.aminmax())
        # An idle lane that is full is computed along: nobody will ask it for more.
        if first + time > self.window:
            raise InputError(
                f"{first + time} frames at the attention along time; mode='offline' was loaded for "
                f"{self.window}: load with a higher limit, or with mode='window'"
            )
        return min(last + time, self.window)

    def _ahead(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        keys: Tensor,
        values: Tensor,
        now: Tensor,
        filled: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        slots = self._slots(now, k)
        keys.scatter_(2, slots, k)
        values.scatter_(2, slots, v)
        # Slot s holds the newest frame whose number is s modulo the capacity.
        newest = now[:, -1:]
        numbers = torch.arange(filled, device=now.device)
        held = newest - (newest - numbers) % self.capacity
        seen = self._seen(now, held)
        y = F.scaled_dot_product_attention(q, keys[:, :, :filled], values[:, :, :filled], seen)
        return y, keys, values

    def _in_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, now: Tensor, _: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        span = self.window - 1
        before = now[:, :1] - span + torch.arange(span, device=now.device)
        past = self._slots(before, k)
        k = torch.cat((keys.gather(2, past), k), dim=2)
        v = torch.cat((values.gather(2, past), v), dim=2)
        held = torch.cat((before, now), dim=1)
        parts = []
        size = max(self.window, 16)
        for start in range(0, now.shape[1], size):
            stop = min(start + size, now.shape[1])
            seen = slice(start, stop + span)
            mask = self._seen(now[:, start:stop], held[:, seen])
            parts.append(
                F.scaled_dot_product_attention(
                    q[:, :, start:stop], k[:, :, seen], v[:, :, seen], mask
                )
            )
        kept = min(self.capacity, held.shape[1])
        slots = self._slots(held[:, -kept:], k)
        # New rings: these writes reach slots that a lane which is not committed still needs.
        keys = keys.scatter(2, slots, k[:, :, -kept:])
        values = values.scatter(2, slots, v[:, :, -kept:])
        return torch.cat(parts, dim=2), keys, values

    def _slots(self, frames: Tensor, like: Tensor) -> Tensor:
        slots = (frames % self.capacity)[:, None, :, None]
        return slots.expand(-1, like.shape[1], -1, like.shape[3])

    def _seen(self, now: Tensor, held: Tensor) -> Tensor:
        """(batch, 1, queries, keys) bool."""
        back = now[:, :, None] - held[:, None, :]
        return ((back >= 0) & (back < self.window) & (held >= 0)[:, None, :])[:, None]
