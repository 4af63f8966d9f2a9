"""The convolutions of Mimi's encoder as a step has them, each in several ways, against float64.

At one lane a step reads all weights once, so those of a call must not lie in a cache: weights, too,
are taken in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.phase import Phase, said
from bench.gpu.timing import (
    FLOAT32_LIMIT,
    Peaks,
    collect,
    float32_as,
    note_clocks,
    open_device,
    relative_error,
    replays_ms,
    rotated,
)
from bench.harness import Row
from streamenc.layers.conv.causal import CausalConv1d
from streamenc.models.mimi import MimiEncoder, MimiShape

LANES = (1, 64, 512)
SECONDS, MOST_SETS = 0.03, 48
CHECKED_LANES = 4
# A hop of Mimi, in samples.
HOP = 1920


@dataclass(frozen=True, slots=True)
class Convolution:
    """One of a step, at so many lanes; `length` new inputs behind `context` carried ones."""

    lanes: int
    ins: int
    outs: int
    kernel: int
    stride: int
    dilation: int
    length: int

    @property
    def title(self) -> str:
        return (
            f"{self.ins} to {self.outs}, kernel {self.kernel}, stride {self.stride}, "
            f"{self.length // self.stride} outputs"
        )

    @property
    def context(self) -> int:
        return (self.kernel - 1) * self.dilation + 1 - self.stride

    @property
    def nbytes(self) -> int:
        weights = self.outs * (self.ins * self.kernel + 1)
        inputs = self.ins * (self.context + self.length)
        return 4 * (weights + self.lanes * (inputs + self.outs * self.length // self.stride))

    @property
    def flops(self) -> int:
        return 2 * self.lanes * self.outs * self.ins * self.kernel * self.length // self.stride

    def make(self, device: torch.device, seed: int) -> Inputs:
        """The layer, what it carries, what is new, and both as one tensor."""
        generator = torch.Generator(device).manual_seed(seed)
        with torch.device(device):
            layer = CausalConv1d(
                self.ins, self.outs, self.kernel, self.stride, dilation=self.dilation
            ).requires_grad_(False)
            x = torch.randn(self.lanes, self.ins, self.context + self.length, generator=generator)
        layer.weight.normal_(0, (self.ins * self.kernel) ** -0.5, generator=generator)
        layer.bias.normal_(generator=generator)  # type: ignore[union-attr]
        layer.prepare()
        state = x[..., : self.context].contiguous() if self.context else None
        return Inputs(layer, state, x[..., self.context :].contiguous(), x)


class Inputs(NamedTuple):
    """state (lanes, channels, context) and new (lanes, channels, length), side by side in x."""

    layer: CausalConv1d
    state: Tensor | None
    new: Tensor
    x: Tensor


Way = Callable[[Convolution, Inputs], Tensor]


def _library(conv: Convolution, given: Inputs) -> Tensor:
    layer, _, _, x = given
    return F.conv1d(x, layer.weight, layer.bias, conv.stride, 0, conv.dilation)


def _product(conv: Convolution, given: Inputs) -> Tensor:
    """A row of a matrix for each output."""
    layer, _, _, x = given
    span = (conv.kernel - 1) * conv.dilation + 1
    windows = x.unfold(-1, span, conv.stride)[..., :: conv.dilation]
    rows = windows.transpose(1, 2).flatten(2)
    return F.linear(rows, layer.weight.flatten(1), layer.bias).transpose(1, 2)


def _ours(conv: Convolution, given: Inputs) -> Tensor:
    """As a stream's step runs it: whatever it takes on this device at this size."""
    y, _ = given.layer.step(given.new, given.state)
    return y


WAYS: dict[str, Way] = {
    "cuDNN": _library,
    "cuDNN, its choice by trial": _library,
    "a product, cuBLAS": _product,
    "the layer": _ours,
}


def run(phase: Phase) -> None:
    device = open_device(phase)
    peaks = Peaks.known(phase)
    with float32_as("ieee"), torch.inference_mode():
        for lanes in (3,) if phase.dry else LANES:
            table = f"Convolutions of Mimi encode, {lanes} lane{'s' * (lanes > 1)}, in a graph"
            whole: dict[str, list[float]] = {name: [] for name in WAYS}
            for conv in mimi(lanes, small=phase.dry):
                for name in WAYS:
                    row = _timed(phase, table, conv, name, device, peaks)
                    if row is not None and row.p50_ms is not None:
                        whole[name].append(row.p50_ms)
                collect(device)
            for name, found in whole.items():
                value = None if phase.dry else sum(found)
                note = f"of {len(found)} convolutions"
                phase.write(table, f"all: {name}", value=value, unit="ms", note=note)
    note_clocks(phase)


def mimi(lanes: int, *, small: bool = False) -> Iterator[Convolution]:
    """Those of one step, in order; `small` has fewer channels, for what only has to run."""
    with torch.device("meta"):
        encoder = MimiEncoder(MimiShape({}), "moshi")
    length = HOP
    for layer in encoder.modules():
        if isinstance(layer, CausalConv1d):
            outs, ins, kernel = layer.weight.shape
            if small:
                outs, ins = max(1, outs // 32), max(1, ins // 32)
            yield Convolution(lanes, ins, outs, kernel, layer.stride, layer.dilation, length)
            length //= layer.stride


def _timed(
    phase: Phase,
    table: str,
    conv: Convolution,
    name: str,
    device: torch.device,
    peaks: Peaks,
) -> Row | None:
    title, way = f"{conv.title}: {name}", WAYS[name]
    if not phase.allows(table, title):
        return None

    def note(row: Row) -> str:
        floor_ms = peaks.floor_ms(conv.nbytes, conv.flops)
        if floor_ms is None or not row.p50_ms:
            return ""
        return f"{row.p50_ms / floor_ms:.1f} times the roofline's {floor_ms:.4f} ms"

    with _by_trial("trial" in name):
        try:
            error = _error(conv, way, device)
        except RuntimeError as raised:  # out of memory, say
            phase.write(table, title, note=said(raised))
            return None
        return phase.timed(
            table,
            title,
            lambda: replays_ms(
                partial(way, conv),
                rotated(partial(conv.make, device), conv.nbytes, device, MOST_SETS),
                device,
                0.0 if phase.dry else SECONDS,
            ),
            unit="ms a call",
            note=note,
            error=error,
            ok=error <= FLOAT32_LIMIT,
        )


def _error(conv: Convolution, way: Way, device: torch.device) -> float:
    """Of all lanes at once, on some of them."""
    given = conv.make(device, 1000)
    layer, _, _, x = given
    few = slice(0, CHECKED_LANES)
    ours = way(conv, given)[few]
    weight, bias = layer.weight.double(), layer.bias.double()  # type: ignore[union-attr]
    return relative_error(
        ours, F.conv1d(x[few].double(), weight, bias, conv.stride, 0, conv.dilation)
    )


@contextmanager
def _by_trial(wanted: bool) -> Iterator[None]:
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = wanted
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
