"""Positions as wav2vec 2.0 and HuBERT have them: a wide convolution, centred on each frame."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.errors import CannotLower
from streamenc.layers.streamed import Exportable, Prepared, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

# Up to so many frames at once the convolution is computed on the CPU as a product for each group:
# there torch's own takes 3 to 9 times as long.
PRODUCT_FRAMES = 64


class PositionalConv(Streamed, Prepared, Exportable):
    """x + gelu(convolution of x), (batch, width, frames) -> the same shape.

    Frame t sees the frames t - kernel // 2 to t + (kernel - 1) // 2; zeros surround the stream.

    chunk  None waits for those after t: the first step takes `ahead` frames more than it gives, and
           the convolution is the published one. A number cuts what t sees at the end of its chunk
           of so many frames, and puts zeros in place of the rest: nothing waits.
    ahead  How many frames the output comes later than the input.

    State: the frames before the next step's that it still sees, (batch, width, kernel // 2), and
    `ahead` more where they are waited for.
    """

    def __init__(self, width: int, kernel_size: int, groups: int, chunk: int | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width // groups, kernel_size))
        self.bias = nn.Parameter(torch.empty(width))
        self.groups, self.chunk = groups, chunk
        self.before, self.after = kernel_size // 2, (kernel_size - 1) // 2
        self.ahead = 0 if chunk else self.after
        self._columns: Tensor | None = None

    @property
    def steps(self) -> Steps:
        if self.chunk is None:
            return Steps(lead=1 + self.ahead)
        return Steps(self.chunk, self.chunk, self.chunk, self.chunk)

    def reach(self, first: int, last: int) -> Span:
        stop = last + self.after
        if self.chunk is not None:
            stop = min(stop, (last // self.chunk + 1) * self.chunk - 1)
        return max(0, first - self.before), stop

    def prepare(self) -> None:
        """Keeps the weight as the product reads it: (groups, channels * kernel, channels)."""
        self._columns = None
        if self.weight.device.type == "cpu":
            rows = self.weight.detach().view(self.groups, -1, self.weight[0].numel())
            self._columns = rows.transpose(1, 2).contiguous()

    def for_export(self) -> None:
        super().for_export()
        self._columns = None  # which way is faster depends on the lanes

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, width, time = x.shape
        past = state if isinstance(state, Tensor) else x.new_zeros(batch, width, self.before)
        seen = torch.cat((past, x), dim=-1)
        ready = seen.shape[-1] - self.before - (0 if end else self.ahead)
        assert ready >= 0
        if not ready:
            return x[..., :0], seen
        if self.chunk is None:
            y = self._convolve(F.pad(seen, (0, self.after)) if end else seen)
        else:
            y = self._cut_at_chunks(seen, time, self.chunk)
        y = seen[..., self.before : self.before + ready] + F.gelu(y)
        return y, seen[..., ready:].contiguous()

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        if self.chunk is None:
            raise CannotLower("positions that wait for the frames behind them have no instructions")
        assert isinstance(state, Tensor)
        y = plan.chunk_convolution(
            *(x, self.weight, self.bias, state),
            groups=self.groups,
            chunk=self.chunk,
            activation="gelu",
        )
        return plan.sum(x, y)

    def _cut_at_chunks(self, seen: Tensor, time: int, chunk: int) -> Tensor:
        batch, width, _ = seen.shape
        seen = F.pad(seen, (0, -time % chunk))
        blocks = seen.unfold(-1, self.before + chunk, chunk).transpose(1, 2).flatten(0, 1)
        y = self._convolve(F.pad(blocks, (0, self.after)))
        return y.view(batch, -1, width, chunk).transpose(1, 2).reshape(batch, width, -1)[..., :time]

    def _convolve(self, x: Tensor) -> Tensor:
        batch, width, length = x.shape
        kernel = self.weight.shape[2]
        frames = length - kernel + 1
        if self._columns is None or batch * frames > PRODUCT_FRAMES:
            return F.conv1d(x, self.weight, self.bias, groups=self.groups)
        grouped = x.view(batch, self.groups, -1, length).transpose(0, 1)
        windows = grouped.unfold(-1, kernel, 1).transpose(2, 3)  # group, batch, frame, channel, tap
        windows = windows.reshape(self.groups, batch * frames, -1)
        y = torch.bmm(windows, self._columns).view(self.groups, batch, frames, -1)
        return y.permute(1, 0, 3, 2).reshape(batch, width, frames) + self.bias[:, None]
