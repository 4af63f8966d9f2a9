"""Two branches that hear the same stream, each with a look-ahead of its own.

Frame t of one belongs to frame t of the other, but they are there at different times: what comes
early waits, so that both come out as one stream.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.conv.centred import CentredConv1d
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

# Of the windowed sinc: zero crossings on each side, and its cutoff, of the lower rate's limit.
ZEROS, ROLLOFF = 6, 0.99


class Beside(Streamed):
    """The outputs of two branches on one input, one below the other: (batch, channels, time).

    Both give as many outputs for the whole input. Where no first step fits both, one of them is
    given its input later, by less than a hop: so that the first step is as short as can be.

    late  By how many inputs each branch is given its own later.

    State, for each branch: its own; its inputs that wait, (batch, channels, late); its outputs that
    wait for the other's, (batch, channels, time). None where nothing waits.
    """

    def __init__(self, first: Streamed, second: Streamed) -> None:
        super().__init__()
        self.branches = nn.ModuleList((first, second))
        hop = math.gcd(first.steps.hop, second.steps.hop)
        apart = (first.steps.lead - second.steps.lead) % hop
        self.late = min(((-apart % hop, 0), (0, apart)), key=lambda late: self._steps(late).lead)

    @property
    def steps(self) -> Steps:
        return self._steps(self.late)

    def _steps(self, late: tuple[int, int]) -> Steps:
        first, second = (
            replace(branch.steps, lead=branch.steps.lead + items)
            for branch, items in zip(self._both(), late, strict=True)
        )
        return first.beside(second)

    def reach(self, first: int, last: int) -> Span:
        spans = [branch.reach(first, last) for branch in self._both()]
        starts = [start for start, _ in spans if start is not None]
        return min(starts) if len(starts) == len(spans) else None, max(stop for _, stop in spans)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        states = state if isinstance(state, tuple) else ((None, None, None),) * 2
        outputs: list[Tensor] = []
        following: list[tuple[State, Tensor | None]] = []
        for branch, items, before in zip(self._both(), self.late, states, strict=True):
            assert isinstance(before, tuple)
            inner, held, waited = before
            taken = torch.cat((held, x), dim=-1) if isinstance(held, Tensor) else x
            stop = taken.shape[-1] - (0 if end else items)
            y, after = branch.step(taken[..., :stop], inner, end=end)
            outputs.append(torch.cat((waited, y), dim=-1) if isinstance(waited, Tensor) else y)
            following.append((after, taken[..., stop:].contiguous() if items else None))
        ready = min(y.shape[-1] for y in outputs)
        assert not end or all(y.shape[-1] == ready for y in outputs)
        waiting = [y[..., ready:].contiguous() if y.shape[-1] > ready else None for y in outputs]
        together = torch.cat([y[..., :ready] for y in outputs], dim=1)
        return together, tuple((*f, w) for f, w in zip(following, waiting, strict=True))

    def _both(self) -> list[Streamed]:
        return [branch for branch in self.branches if isinstance(branch, Streamed)]


class Padded(Streamed):
    """The input between zeros, `items` of them at each end of the stream.

    State: nothing, but another nothing than that of a stream that has not begun.
    """

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = items

    @property
    def steps(self) -> Steps:
        return Steps(lead_out=1 + self.items)

    def reach(self, first: int, last: int) -> Span:
        return max(0, first - self.items), max(0, last - self.items)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        ends = (self.items if state is None else 0, self.items if end else 0)
        return F.pad(x, ends) if any(ends) else x, ()


class Resampled(CentredConv1d):
    """Sound at `new / old` of its rate, (batch, 1, time) -> (batch, 1, time * new / old), through a
    windowed sinc: torchaudio's `resample` as its defaults have it, for whole multiples of `old`.

    old, new  Without a common factor.
    """

    def __init__(self, old: int, new: int) -> None:
        width = math.ceil(ZEROS * old / (ROLLOFF * min(old, new)))
        super().__init__(1, new, 2 * width + old, old, padding=width, bias=False)
        self.old, self.new = old, new

    @property
    def steps(self) -> Steps:
        return super().steps.then(Steps(1, 1, self.new, self.new))

    def reach(self, first: int, last: int) -> Span:
        return super().reach(first // self.new, last // self.new)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        y, after = super().step(x, state, end=end)
        return y.transpose(1, 2).reshape(x.shape[0], 1, -1), after

    def kernel(self) -> Tensor:
        """Its weight: one filter for each output between two inputs, (new, 1, kernel)."""
        base = ROLLOFF * min(self.old, self.new)
        inputs = torch.arange(-self.padding, self.padding + self.old, dtype=torch.float64)
        outputs = torch.arange(self.new, dtype=torch.float64)
        away = base * (inputs / self.old - outputs[:, None, None] / self.new)
        away = away.clamp(-ZEROS, ZEROS)
        window = (away * math.pi / ZEROS / 2).cos().square()
        return away.sinc() * window * base / self.old


class Every(Streamed):
    """The first of each `count` positions. No state."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    @property
    def steps(self) -> Steps:
        return Steps(self.count, self.count)

    def reach(self, first: int, last: int) -> Span:
        return first * self.count, last * self.count

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert end or not x.shape[-1] % self.count
        return x[..., :: self.count], None
