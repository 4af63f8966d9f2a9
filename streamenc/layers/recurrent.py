"""A recurrent layer with explicit state."""

from __future__ import annotations

from torch import Tensor, nn

from streamenc.layers.base import Streamed
from streamenc.state import State


class SkipLSTM(Streamed):
    """x + LSTM(x), as between the convolutions of EnCodec.

    State: hidden and cell, each (batch, layers, channels): lanes first, unlike torch.nn.LSTM.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        before = None
        if isinstance(state, tuple):
            hidden, cell = state
            assert isinstance(hidden, Tensor) and isinstance(cell, Tensor)
            before = (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous())
        inputs = x.permute(2, 0, 1)
        y, (hidden, cell) = self.lstm(inputs, before)
        out = (y + inputs).permute(1, 2, 0)
        return out, (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous())
