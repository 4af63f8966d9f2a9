"""Which inputs an output depends on, measured by its gradient."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from streamenc.models.model import Model
from streamenc.models.signal import Scaled


def without_windows(model: Model) -> Model:
    """A copy whose windows of spectra are all ones: a Hann window begins with a zero, through which
    nothing can be measured."""
    other = copy.deepcopy(model)
    for module in other.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "window":
                buffer.fill_(1)
    return other


def measured_reach(
    model: Model, signal: Tensor | Scaled, items: list[int]
) -> list[tuple[int, int]]:
    """Of each of the output items, the first and the last input item that it depends on.

    signal  What a first step takes, of batch 1. Codes are looked up before: their gradient is that
            of what they stand for.
    """
    x = model.before(signal).detach().clone().requires_grad_()
    y, _ = model.step(x, None)
    generator = torch.Generator().manual_seed(5)
    reaches = []
    for item in items:
        output = y.select(_time(y, model.steps.outputs(_length(signal))), item)
        weight = torch.randn(output.shape, generator=generator, dtype=output.dtype)
        (gradient,) = torch.autograd.grad((output * weight).sum(), x, retain_graph=True)
        others = [axis for axis in range(x.ndim) if axis != _time(x, _length(signal))]
        touched = (gradient != 0).sum(dim=others).nonzero().flatten()
        reaches.append((int(touched[0]), int(touched[-1])))
    return reaches


def _length(signal: Tensor | Scaled) -> int:
    return (signal.codes if isinstance(signal, Scaled) else signal).shape[2]


def _time(x: Tensor, length: int) -> int:
    """Its axis: of video that is the last one inside a model."""
    return 2 if x.shape[2] == length else x.ndim - 1
