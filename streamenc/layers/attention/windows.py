"""Windows that overlap, each computed anew by a network that sees all of it.

This is how an encoder that was trained on whole clips runs on a stream as it was published: at each
hop on the newest positions, of which those come out that no window before has given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State


class Windows(Streamed):
    """(batch, channels, positions) -> what `net` makes of each window, (batch, out, positions).

    A window ends every `hop` positions and sees the last `window` of them, or all where there are
    fewer; it gives `hop` of them, all but the newest `ahead`. So the first step takes `hop` +
    `ahead` positions. At the end of the stream a window that is shorter by what is missing gives
    the rest.

    net     (batch, channels, window), and how many positions at its end there are, (batch,) int64
            -> (batch, out, window). Before those there are zeros, which it must not see.
    out     Channels that `net` gives.

    State: positions so far, (batch,) int64; those that the next window shares with the last one,
    (batch, channels, window - hop); None where that is 0.
    """

    def __init__(
        self,
        net: nn.Module,
        out: int,
        window: int,
        hop: int,
        ahead: int = 0,
    ) -> None:
        super().__init__()
        assert hop > 0 <= ahead and hop + ahead <= window
        self.net: Callable[[Tensor, Tensor], Tensor] = net
        self.out, self.window, self.hop, self.ahead = out, window, hop, ahead

    @property
    def steps(self) -> Steps:
        return Steps(self.hop + self.ahead, self.hop, self.hop, self.hop)

    def reach(self, first: int, last: int) -> Span:
        ends = [(item // self.hop + 1) * self.hop + self.ahead for item in (first, last)]
        return max(0, ends[0] - self.window), ends[1] - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        window, hop = self.window, self.hop
        held = window - hop - self.ahead  # positions of a window before those that it gives
        if isinstance(state, tuple):
            count, before = state
            assert isinstance(count, Tensor)
            seen = torch.cat((before, x), dim=-1) if isinstance(before, Tensor) else x
        else:
            count = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
            seen = F.pad(x, (held, 0))
        count = count + x.shape[-1]
        last = seen.shape[-1]
        outputs = [x.new_zeros(x.shape[0], self.out, 0)]
        start = 0
        while start + window <= last:
            there = (count - (last - start - window)).clamp(max=window)
            y = self.net(seen[..., start : start + window], there)
            outputs.append(y[..., held : held + hop])
            start += hop
        rest = seen[..., start:]
        assert end or rest.shape[-1] == window - hop
        if end and rest.shape[-1] > held:
            y = self.net(F.pad(rest, (window - rest.shape[-1], 0)), count.clamp(max=last - start))
            outputs.append(y[..., window - rest.shape[-1] + held :])
        return torch.cat(outputs, dim=-1), (count, rest.contiguous() if window > hop else None)
