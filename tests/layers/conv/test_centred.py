"""Centred convolutions against torch's own over the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamenc import state as states
from streamenc.layers.conv.centred import CentredConv1d, CentredConvTranspose1d
from streamenc.layers.streamed import Chain, Residual, Streamed
from tests.layers.conv.test_causal import filled, noise
from tests.support.compare import assert_close, poisoned_memory

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]


def stepped(layer: Streamed, x: torch.Tensor, hops: list[int]) -> torch.Tensor:
    """A stream whose first step takes the lead, and each later one some hops."""
    steps, state, at, outputs = layer.steps, None, 0, []
    for number, count in enumerate([0, *hops]):
        size = count * steps.hop if number else steps.lead
        if at + size > x.shape[-1]:
            break
        y, state = layer.step(x[..., at : at + size], state)
        wanted = count * steps.hop_out if number else steps.lead_out
        assert y.shape[-1] == wanted
        outputs.append(y)
        at += size
    y, _ = layer.step(x[..., at:], state, end=True)
    return torch.cat([*outputs, y], dim=-1)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation", "groups"),
    [
        (5, 7, 1, 3, 1, 1),
        (12, 7, 1, 27, 9, 12),
        (123, 1, 1, 0, 1, 1),
        (6, 4, 2, 1, 1, 1),
        (64, 10, 5, 3, 1, 1),
        (6, 6, 3, 2, 1, 3),
        (5, 5, 5, 0, 1, 1),
    ],
)
def test_conv(dtype, rel, channels, kernel, stride, padding, dilation, groups):
    layer = CentredConv1d(
        channels, 12, kernel, stride, padding=padding, dilation=dilation, groups=groups
    )
    layer = filled(layer, dtype)
    for length in (1, 3, stride, 29, 60, 123):
        x = noise(2, channels, length, dtype=dtype)
        if length + 2 * padding < (kernel - 1) * dilation + 1:
            assert layer(x).shape == (2, 12, 0)
            continue
        whole = F.conv1d(x, layer.weight, layer.bias, stride, padding, dilation, groups)
        assert_close(layer(x), whole, rel)
        assert_close(stepped(layer, x, [1] * 200), whole, rel)
        assert_close(stepped(layer, x, [1, 3, 2]), whole, rel)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "output_padding", "groups"),
    [
        (5, 4, 2, 1, 0, 1),
        (64, 16, 8, 4, 0, 1),
        (6, 10, 5, 3, 0, 1),
        (6, 10, 5, 3, 1, 2),
        (6, 6, 3, 2, 1, 1),
        (6, 2, 1, 1, 0, 1),
        (6, 5, 2, 2, 1, 3),
        (6, 7, 3, 0, 2, 1),
        (6, 3, 3, 0, 0, 1),
    ],
)
def test_transposed(dtype, rel, channels, kernel, stride, padding, output_padding, groups):
    layer = CentredConvTranspose1d(
        channels,
        12,
        kernel,
        stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
    )
    layer = filled(layer, dtype)
    for length in (1, 2, 5, 29):
        x = noise(2, channels, length, dtype=dtype)
        if (length - 1) * stride + kernel - 2 * padding + output_padding <= 0:
            continue
        whole = F.conv_transpose1d(
            x, layer.weight, layer.bias, stride, padding, output_padding, groups
        )
        assert_close(layer(x), whole, rel)
        assert_close(stepped(layer, x, [1] * 60), whole, rel)
        assert_close(stepped(layer, x, [1, 3, 2]), whole, rel)


def test_a_residual_waits_for_its_block():
    first = filled(CentredConv1d(4, 4, 7, dilation=3), torch.float64)
    second = filled(CentredConv1d(4, 4, 3), torch.float64)
    unit = Residual(Chain([first, second]))
    assert (unit.steps.lead, unit.steps.lead_out) == (11, 1)
    for length in (1, 7, 40, 75):
        x = noise(2, 4, length, dtype=torch.float64)
        y = F.conv1d(x, first.weight, first.bias, padding=9, dilation=3)
        y = x + F.conv1d(y, second.weight, second.bias, padding=1)
        assert_close(unit(x), y, 1e-12)
        assert_close(stepped(unit, x, [1] * 70), y, 1e-12)
        assert_close(stepped(unit, x, [1, 3, 2]), y, 1e-12)


def test_state_stays_as_it_is():
    layers = [
        CentredConv1d(2, 4, 7),
        CentredConv1d(4, 4, 7, dilation=9),
        CentredConv1d(4, 4, 10, 5, padding=3),
        CentredConvTranspose1d(4, 2, 10, 5, padding=3),
    ]
    first, wide, *others = [filled(layer, torch.float64) for layer in layers]
    layer = Chain([first, Residual(wide), *others])
    x = noise(2, 2, 400, dtype=torch.float64)
    steps = layer.steps
    _, state = layer.step(x[..., : steps.lead], None)
    form = states.form(state)
    for _ in range(3):
        _, state = layer.step(x[..., : steps.hop], state)
        assert states.form(state) == form


@pytest.mark.parametrize("padding", [-1, 7, 3])
def test_paddings_that_make_no_stream_are_refused(padding):
    with pytest.raises(ValueError, match="padding"):
        CentredConv1d(2, 2, 7, 7 if padding == 3 else 1, padding=padding)


@pytest.mark.parametrize(
    ("kernel", "padding", "extra"), [(3, 0, 0), (4, 1, 0), (8, 5, 0), (8, 1, 4)]
)
def test_transposed_paddings_that_make_no_stream_are_refused(kernel, padding, extra):
    with pytest.raises(ValueError, match="padding"):
        CentredConvTranspose1d(2, 2, kernel, 4, padding=padding, output_padding=extra)
