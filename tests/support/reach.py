"""Which inputs an output depends on, measured by its gradient."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor

from streamenc.layers.streamed import Streamed
from streamenc.models.model import Model


def without_windows(model: Model) -> Model:
    """A copy whose windows of spectra are all ones: a Hann window begins with a zero, through which
    nothing can be measured."""
    other = copy.deepcopy(model)
    for module in other.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name == "window":
                buffer.fill_(1)
    return other


def measured_reach(layer: Streamed, x: Tensor, items: Iterable[int]) -> list[tuple[int, int]]:
    """Of each of the output items, the first and the last input item that it depends on.

    x       What the stream's first step takes, of a model as `before` gives it.
    """
    x = x.detach().clone().requires_grad_()
    y, _ = layer.step(x, None)
    generator = torch.Generator().manual_seed(5)
    others = [axis for axis in range(x.ndim) if axis != 2]
    reaches = []
    for item in items:
        output = y[:, :, item]
        weight = torch.randn(output.shape, generator=generator, dtype=y.dtype)
        (gradient,) = torch.autograd.grad((output * weight).abs().sum(), x, retain_graph=True)
        touched = (gradient != 0).sum(dim=others).nonzero().flatten()
        reaches.append((int(touched[0]), int(touched[-1])))
    return reaches
