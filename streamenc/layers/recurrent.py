"""A recurrent layer with explicit state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from streamenc.layers.streamed import Exportable, Prepared, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State
from streamenc_kernels import pack_linear, packed_linear

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

# Up to so many positions packed weights win over torch's LSTM, which repacks its own at each call.
PACKED_POSITIONS = 24


class SkipLSTM(Streamed, Prepared, Exportable):
    """x + LSTM(x), as between the convolutions of EnCodec.

    State: hidden and cell, each (batch, layers, channels): lanes first, unlike torch.nn.LSTM.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers)
        self._packed: list[tuple[Tensor | None, Tensor | None]] = []

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return None, last

    def prepare(self) -> None:
        self._packed = []
        for layer in range(self.lstm.num_layers):
            packed = [pack_linear(self._weight(kind, layer)) for kind in ("ih", "hh")]
            if packed[0] is None or packed[1] is None:
                return
            self._packed.append((packed[0], packed[1]))

    def for_export(self) -> None:
        super().for_export()
        # Position by position as on packed weights, but on plain ones: a runtime packs by itself.
        self._packed = [(None, None)] * self.lstm.num_layers

    def _weight(self, kind: str, layer: int) -> Tensor:
        return self.lstm.get_parameter(f"weight_{kind}_l{layer}")

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        inputs = x.permute(2, 0, 1)
        if isinstance(state, tuple):
            hidden, cell = state
            assert isinstance(hidden, Tensor) and isinstance(cell, Tensor)
        else:
            hidden = x.new_zeros(x.shape[0], self.lstm.num_layers, x.shape[1])
            cell = torch.zeros_like(hidden)
        if x.shape[2] <= PACKED_POSITIONS and self._packed:
            y, hidden, cell = self._unrolled(inputs, hidden, cell)
        else:
            before = (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous())
            y, (hidden, cell) = self.lstm(inputs, before)
            hidden, cell = (s.transpose(0, 1).contiguous() for s in (hidden, cell))
        return (y + inputs).permute(1, 2, 0), (hidden, cell)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        assert isinstance(state, tuple)
        hidden, cell = state
        assert isinstance(hidden, Tensor) and isinstance(cell, Tensor)
        y = x
        for layer in range(self.lstm.num_layers):
            y = plan.recurrent(y, self.lstm, layer, hidden, cell)
        return plan.sum(y, x)

    def _unrolled(self, x: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same equations, position by position: x (time, batch, channels)."""
        hiddens, cells = list(hidden.unbind(1)), list(cell.unbind(1))
        for layer in range(self.lstm.num_layers):
            packed_ih, packed_hh = self._packed[layer]
            bias = self.lstm.get_parameter(f"bias_ih_l{layer}") + self.lstm.get_parameter(
                f"bias_hh_l{layer}"
            )
            weight_hh = self._weight("hh", layer)
            from_input = packed_linear(x.contiguous(), self._weight("ih", layer), packed_ih) + bias
            h, c = hiddens[layer].contiguous(), cells[layer]
            out = []
            for gates in from_input:
                i, f, g, o = (gates + packed_linear(h, weight_hh, packed_hh)).chunk(4, dim=-1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
                out.append(h)
            hiddens[layer], cells[layer] = h, c
            x = torch.stack(out)
        return x, torch.stack(hiddens, dim=1), torch.stack(cells, dim=1)
