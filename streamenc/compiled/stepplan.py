"""Plan: the instructions of a step, as the layers of a model ask for them."""

from __future__ import annotations

from torch import nn

from streamenc.compiled.lowering.inchunks import InChunks
from streamenc.compiled.lowering.lstm import Recurrent
from streamenc.compiled.lowering.matrices import Products
from streamenc.compiled.lowering.neighbours import Neighbours
from streamenc.compiled.lowering.perchannel import PerChannel
from streamenc.compiled.lowering.rings import Rings
from streamenc.compiled.lowering.spectra import Spectra
from streamenc.compiled.values import FLOAT_BYTES, Activated, AnyValue, Outside, Value
from streamenc.errors import CannotLower
from streamenc.layers.linear import Linear
from streamenc.layers.streamed import Pointwise, Streamed
from streamenc.state import State
from streamenc_kernels.compiled.instruction import Activation, Field


class Plan(Recurrent, InChunks, Products, PerChannel, Rings, Spectra, Neighbours):
    """What layers lower themselves into.

    A layer's `lower(plan, x, state)` calls the methods of these classes with its weights, the value
    that it gets, and its part of a state in mid-stream; it gives its output.
    """

    def input(self, rows: int, channels: int) -> Value:
        """What goes into the step, (lanes, channels, rows)."""
        return Value(self, rows, channels, None)

    def finish(self, y: AnyValue) -> None:
        """Makes a value what comes out: (lanes, rows, channels)."""
        if isinstance(y, Activated) or y.maker is None or Field.Y in y.maker.fields:
            y = self.copied(y)
        assert y.maker is not None
        size = y.channels * FLOAT_BYTES
        place = Field.Z if y.behind is not Activation.NONE else Field.Y
        if place is Field.Z:
            y.maker.fields[Field.ACTIVATION] = int(y.behind)
        y.maker.fields |= {
            place: Outside("y"),
            Field(place + 1): y.rows_each * size,
            Field(place + 2): y.rows * size,
        }
        self.output = y

    def through(self, layer: nn.Module, x: AnyValue, state: State) -> AnyValue:
        """A layer's output. Raises CannotLower."""
        if isinstance(layer, Streamed):
            y: AnyValue = layer.lower(self, x, state)
            return y
        if isinstance(layer, Pointwise):
            return layer.lower(self, x)
        if isinstance(layer, nn.Identity):
            return x
        if isinstance(layer, nn.ELU) and layer.alpha == 1 and isinstance(x, Value):
            return x.activated(Activation.ELU)
        if isinstance(layer, nn.GELU) and isinstance(x, Value):
            tanh = layer.approximate == "tanh"
            return x.activated(Activation.GELU_TANH if tanh else Activation.GELU)
        if isinstance(layer, Linear):
            return self.linear(x, layer)
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            return self.norm(x, layer)
        raise CannotLower(f"{type(layer).__name__} has no instructions")
