from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from streamenc import state as states
from streamenc.layers.conv import convnext
from streamenc.layers.conv.convnext import ConvNeXt, SplitConvNeXt
from tests.support.references import randomise


def block(width: int, hidden: int, kernel: int, **form: Any) -> ConvNeXt:
    layer = ConvNeXt(width, hidden, kernel, **form).double()
    randomise(layer)
    return layer


@pytest.mark.parametrize(("width", "hidden", "kernel"), [(5, 12, 7), (8, 8, 1), (3, 16, 4)])
def test_a_block_is_its_formula(width: int, hidden: int, kernel: int) -> None:
    layer = block(width, hidden, kernel)
    x = torch.randn(2, width, 23, dtype=torch.float64)
    y = layer.depthwise
    mixed = F.conv1d(F.pad(x, (kernel - 1, 0)), y.weight, y.bias, groups=width).transpose(1, 2)
    normal = F.layer_norm(mixed, (width,), layer.norm.weight, layer.norm.bias)
    fed = F.gelu(normal @ layer.up.weight.T, approximate="tanh") @ layer.down.weight.T
    torch.testing.assert_close(layer(x), x + fed.transpose(1, 2))


def test_the_other_form():
    """The exact GELU, a scale, and biases."""
    layer = block(5, 12, 7, norm_eps=1e-2, quick=False, bias=True, scaled=True)
    x = torch.randn(2, 5, 23, dtype=torch.float64)
    y = layer.depthwise
    mixed = F.conv1d(F.pad(x, (6, 0)), y.weight, y.bias, groups=5).transpose(1, 2)
    normal = F.layer_norm(mixed, (5,), layer.norm.weight, layer.norm.bias, 1e-2)
    fed = F.linear(normal, layer.up.weight, layer.up.bias)
    fed = F.linear(fed * (1 + torch.erf(fed / 2**0.5)) / 2, layer.down.weight, layer.down.bias)
    torch.testing.assert_close(layer(x), x + (layer.scale * fed).transpose(1, 2))


@pytest.mark.parametrize("kernel", [7, 1])
def test_as_on_a_gpu(kernel):
    """The convolution and the norm as one op."""
    layer = block(5, 12, kernel)
    x = torch.randn(2, 5, 23, dtype=torch.float64)
    whole, parts, state = layer(x), [], None
    with mock.patch.object(convnext, "fuses_depthwise", return_value=True) as asked:
        torch.testing.assert_close(layer(x), whole)
        for piece in x.split((1, 2, 15, 5), dim=-1):
            y, state = layer.step(piece, state)
            parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole)
    assert asked.called == (kernel > 1)
    assert states.form(state) == states.form(layer.step(x, None)[1])


@pytest.mark.parametrize("sizes", [(1,) * 23, (5, 1, 17), (22, 1)])
def test_pieces_give_the_whole(sizes: tuple[int, ...]) -> None:
    layer = block(5, 12, 7)
    x = torch.randn(2, 5, 23, dtype=torch.float64)
    state, parts = None, []
    for piece in x.split(sizes, dim=-1):
        y, state = layer.step(piece, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=-1), layer(x), rtol=0, atol=1e-12)


def test_two_branches_are_their_formula():
    layer = SplitConvNeXt(5, 12, 4, norm_eps=1e-2).double()
    randomise(layer)
    x, y = torch.randn(2, 5, 23, dtype=torch.float64), layer.depthwise

    def normal(v: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
        return norm.weight * v / (v.square().mean(dim=-1, keepdim=True) + 1e-2).sqrt()

    rows = normal(x.transpose(1, 2), layer.norm1).transpose(1, 2)
    mixed = F.conv1d(F.pad(rows, (3, 0)), y.weight, y.bias, groups=5).transpose(1, 2)
    half = x.transpose(1, 2) + layer.scale1 * mixed
    fed = F.gelu(F.linear(normal(half, layer.norm2), layer.up.weight, layer.up.bias))
    fed = F.linear(fed, layer.down.weight, layer.down.bias)
    torch.testing.assert_close(layer(x), (half + layer.scale2 * fed).transpose(1, 2))
