"""Text that goes in, and a small model that takes it: the mean of a table's rows, by bytes."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamenc.codec import Codec
from streamenc.errors import InputError
from streamenc.graph.frames import Frame
from streamenc.io.text.textsource import INFO
from streamenc.layers.streamed import Span
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

WIDTH, LONGEST = 5, 64


class ByteModel(Model):
    """State: how many texts went by, (batch,) int64."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(256, WIDTH, generator=torch.manual_seed(7)))
        self.spec = StreamSpec(
            name="bytes",
            input=Port("text", Fraction(1), 1, "str", axes=1),
            output=Port("features", Fraction(1), WIDTH),
            steps=self.steps,
            equality="offline",
            receptive_field=1,
        )

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return first, last

    def signal(self, x: Any) -> Signal:
        if isinstance(x, Tensor):
            return x
        texts = np.atleast_2d(np.asarray(x, np.str_))
        texts = texts.reshape(-1, 1, texts.shape[-1])
        tokens = np.zeros((*texts.shape, LONGEST), np.int64)
        for place, text in np.ndenumerate(texts):
            said = np.frombuffer(text.encode(), np.uint8)[:LONGEST]
            tokens[place][: len(said)] = said + np.int64(1)
        return torch.from_numpy(tokens)

    def before(self, x: Signal) -> Tensor:
        x = super().before(x)
        if x.ndim != 4 or x.dtype != torch.int64:
            raise InputError(f"got {x.dtype} of shape {tuple(x.shape)}; wanted tokens")
        return x

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, count = x.shape[0], x.shape[2]
        if not count:
            return self.table.new_zeros(batch, WIDTH, 0), state
        there = (x > 0).unsqueeze(-1)
        rows = self.table[(x - 1).clamp(min=0)] * there
        mean = rows.sum(dim=3) / there.sum(dim=3).clamp(min=1)
        seen = torch.full((batch,), count)
        if isinstance(state, Tensor):
            seen += state
        return mean[:, 0].transpose(1, 2).contiguous(), seen

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], WIDTH, 0)


def load(name: str, checkpoint: object, part: str) -> tuple[Model | None, None]:
    """So that `tests.support.texts:load` names it as a model."""
    return (None if part == "decoder" else ByteModel()), None


def codec() -> Codec:
    return Codec("bytes", ByteModel(), None)


def vector(text: str) -> np.ndarray[Any, Any]:
    """(WIDTH,), what the model makes of a text."""
    with torch.inference_mode():
        y = codec().encode([text])
    return np.asarray(y)[0, :, 0]


def segments(*texts: str, revised: Sequence[int] = (), apart_ms: int = 500) -> list[Frame]:
    """A frame each; those at `revised` say anew what the one before them said."""
    frames: list[Frame] = []
    for index, text in enumerate(texts):
        anew = index in revised
        number = frames[-1].segment + (not anew) if frames else 0
        frames.append(
            Frame(
                np.array([[text]]),
                number * apart_ms,
                apart_ms - 100,
                index,
                segment=number,
                revised=anew,
                arrived_ns=index + 1,
            )
        )
    return frames


__all__ = ["INFO", "ByteModel", "codec", "load", "segments", "vector"]
