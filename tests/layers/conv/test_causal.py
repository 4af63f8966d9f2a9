"""Causal convolutions against torch's own over the padded whole."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc import state as states
from streamenc.layers.conv import causal
from streamenc.layers.conv.causal import (
    CausalConv1d,
    CausalConvTranspose1d,
    ValidConv1d,
    pad,
)
from streamenc.layers.streamed import Streamed
from tests.support.compare import assert_close, poisoned_memory
from tests.support.launches import FakeGpu, Launches
from tests.support.packing import either_packing, packs

pytestmark = pytest.mark.usefixtures("poisoned_memory", "either_packing")
__all__ = ["either_packing", "packs", "poisoned_memory"]

DTYPES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]


def filled(layer: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    layer = layer.to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
    layer.prepare()
    return layer


def noise(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def stepped(layer: torch.nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    outputs, state, at = [], None, 0
    for size in sizes:
        y, state = layer.step(x[..., at : at + size], state)
        outputs.append(y)
        at += size
    y, _ = layer.step(x[..., at:], state, end=True)
    return torch.cat([*outputs, y], dim=-1)


@pytest.mark.parametrize(("dtype", "rel"), DTYPES)
@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect"])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "dilation", "groups"),
    [
        (5, 7, 1, 1, 1),
        (123, 3, 1, 2, 1),
        (6, 8, 4, 1, 1),
        (6, 5, 1, 3, 3),
        (64, 1, 1, 1, 1),
        # With the 12 outputs, depthwise.
        (12, 5, 2, 1, 12),
        (12, 3, 1, 3, 12),
    ],
)
@pytest.mark.parametrize("length", [37, 123])
def test_conv(dtype, rel, mode, channels, kernel, stride, dilation, groups, length):
    layer = CausalConv1d(
        channels, 12, kernel, stride, dilation=dilation, groups=groups, pad_mode=mode
    )
    layer = filled(layer, dtype)
    x = noise(2, channels, length, dtype=dtype)
    left, right = (kernel - 1) * dilation + 1 - stride, -length % stride
    padded = F.pad(x, (left, right), mode=mode) if left or right else x
    whole = F.conv1d(padded, layer.weight, layer.bias, stride, 0, dilation, groups)
    assert whole.shape[-1] == -(-length // stride)
    assert_close(layer(x), whole, rel)
    first = -(-(left + 1) // stride) * stride  # as many as reflection at the start needs
    assert_close(stepped(layer, x, [first, stride, 2 * stride]), whole, rel)
    assert_close(stepped(layer, x, [first] + [stride] * 3), whole, rel)


@pytest.mark.parametrize(
    ("kernel", "stride", "before"), [(5, 2, 4), (3, 1, 2), (3, 2, 1), (4, 3, 0)]
)
@pytest.mark.parametrize("length", [37, 38, 39])
def test_zeros_before_but_not_behind(kernel, stride, before, length):
    layer = filled(ValidConv1d(5, 12, kernel, stride, before=before), torch.float64)
    x = noise(2, 5, length, dtype=torch.float64)
    whole = F.conv1d(F.pad(x, (before, 0)), layer.weight, layer.bias, stride)
    assert_close(layer(x), whole, 1e-12)
    lead = layer.steps.lead
    assert_close(stepped(layer, x, [lead, stride, 2 * stride]), whole, 1e-12)
    assert_close(stepped(layer, x, [lead + stride] + [stride] * 3), whole, 1e-12)


def test_conv_state_is_the_last_inputs():
    layer = filled(CausalConv1d(5, 3, 7, dilation=2), torch.float64)
    x = noise(2, 5, 30, dtype=torch.float64)
    _, state = layer.step(x, None)
    assert layer.context == 12 and torch.equal(state, x[..., -12:])
    _, state = layer.step(x[..., :4], state)
    assert torch.equal(state, torch.cat((x[..., -8:], x[..., :4]), dim=-1))


def test_ragged_input_in_mid_stream_is_our_own_mistake():
    layer = filled(CausalConv1d(1, 1, 4, 2), torch.float64)
    with pytest.raises(AssertionError, match="3 inputs in mid-stream; stride is 2"):
        layer.step(torch.zeros(1, 1, 3, dtype=torch.float64), None)


@pytest.mark.parametrize(("dtype", "rel"), DTYPES)
@pytest.mark.parametrize(
    ("channels", "outputs", "kernel", "stride", "groups", "bias"),
    [
        (5, 7, 8, 4, 1, True),
        (123, 6, 10, 5, 1, False),
        (6, 6, 4, 2, 6, True),
        (5, 3, 7, 3, 1, True),
        (5, 7, 4, 4, 1, True),
    ],
)
def test_transposed(dtype, rel, channels, outputs, kernel, stride, groups, bias):
    """The overlap is carried without the bias, which would otherwise be added twice."""
    layer = CausalConvTranspose1d(channels, outputs, kernel, stride, groups=groups, bias=bias)
    layer = filled(layer, dtype)
    x = noise(2, channels, 123, dtype=dtype)
    whole = F.conv_transpose1d(x, layer.weight, layer.bias, stride, groups=groups)
    whole = whole[..., : 123 * stride]
    assert_close(layer(x), whole, rel)
    assert_close(stepped(layer, x, [1, 1, 5, 100]), whole, rel)
    # As on a GPU: one product, or one factor, and a kernel that adds up.
    fused = mock.patch.object(causal, "adds_fused", return_value=True)
    with fused as asked, torch.no_grad():
        assert_close(layer(x), whole, rel)
        assert_close(stepped(layer, x, [1, 1, 5, 100]), whole, rel)
        (taken, _), (_, after) = layer.step(x, None), layer.step(x[..., :2], None)
    assert bool(asked.call_count) == (kernel in (stride, 2 * stride))
    assert states.form(after) == states.form(layer.step(x[..., :2], None)[1])
    assert taken.shape == whole.shape


def test_transposed_in_three_launches_on_a_gpu():
    gpu = FakeGpu()
    layer = gpu.module(CausalConvTranspose1d(64, 32, 8, 4))
    x, state = gpu.empty(torch.zeros(3, 64, 2)), gpu.empty(torch.zeros(3, 32, 4))
    (y, _), launches = gpu.trace(lambda: layer.step(x, state))
    assert y.shape == (3, 32, 8)
    assert dict(launches) == {"clone": 1, "mm": 1, "overlap_add_kernel": 1}


@pytest.mark.parametrize("kind", ["conv", "transposed"])
def test_idle_lanes_keep_their_state_to_the_bit(kind):
    make = CausalConv1d if kind == "conv" else CausalConvTranspose1d
    layer = filled(make(5, 4, 6, 3), torch.float32)
    pool = states.clone(layer.step(noise(3, 5, 9, dtype=torch.float32), None)[1])
    before = states.clone(pool)
    _, new = layer.step(noise(3, 5, 3, dtype=torch.float32, seed=2), pool)
    states.commit(pool, new, torch.tensor([True, False, True]))
    assert torch.equal(pool[1], before[1])
    assert torch.equal(pool[0], new[0]) and not torch.equal(pool[0], before[0])


@pytest.mark.parametrize("length", [1, 2, 5])
def test_reflection_of_too_short_an_input(length):
    """It is extended by zeros first, which are cut off again."""
    x = noise(1, 2, length, dtype=torch.float64)
    y = pad(x, 6, 0, "reflect")
    assert y.shape[-1] == length + 6
    assert torch.equal(y[..., 6:], x)
    extended = F.pad(x, (0, 7 - length))
    assert torch.equal(y[..., :6], extended[..., 1:7].flip(-1))


@pytest.mark.parametrize("mode", ["constant", "replicate", "reflect"])
def test_nothing_missing_is_no_copy(mode):
    x = noise(1, 2, 5, dtype=torch.float64)
    assert pad(x, 0, 0, mode) is x


def on_gpu(make: Callable[[], Streamed], lanes: int, length: int) -> Launches:
    """What a step in mid-stream launches, on tensors of a GPU that hold no numbers. Of float64,
    which no kernel takes."""
    gpu = FakeGpu()
    with torch.device("meta"):
        layer = make().double()
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, gpu.empty(parameter))
    x = gpu.empty(torch.empty(1, 32, length, dtype=torch.float64, device="meta"), lanes)
    (_, state), _ = gpu.trace(lambda: layer.step(x, None), strict=False)
    return gpu.trace(lambda: layer.step(x, state))[1]


@pytest.mark.parametrize(("lanes", "product"), [(1, True), (64, True), (65, False)])
def test_few_outputs_of_all_lanes_are_a_product_on_a_gpu_too(lanes, product):
    launches = on_gpu(lambda: CausalConv1d(32, 48, 16, 8), lanes, 16)
    assert launches["convolution"] == (not product)
    assert launches["addmm"] == product  # with the bias


def test_depthwise_ones_are_no_product_there():
    assert on_gpu(lambda: CausalConv1d(32, 32, 7, groups=32), 1, 2)["convolution"] == 1


@pytest.mark.parametrize(
    "make", [lambda: CausalConv1d(32, 48, 1), lambda: CausalConvTranspose1d(32, 48, 8, 8)]
)
def test_no_pads_of_no_width_on_a_gpu(make):
    assert not any("pad" in name for name in on_gpu(make, 100, 2))
