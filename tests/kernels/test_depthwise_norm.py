"""depthwise_norm against torch's convolution and norm in float64, as torch and as Triton kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc_kernels import depthwise_norm
from streamenc_kernels.depthwise_norm import fuses_depthwise
from streamenc_kernels.dispatch import Implementation
from tests.support.compare import assert_close
from tests.support.interpreter import needs_triton

EPS = 1e-5


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def blocks(
    implementation: Implementation,
    x: Tensor,
    parameters: list[Tensor],
    steps: list[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    x, parameters = x.to(dtype), [p.to(dtype) for p in parameters]
    state = x.new_zeros(*x.shape[:2], parameters[0].shape[1] - 1)
    outputs, at = [], 0
    for step in steps:
        part = x[..., at : at + step]  # a step's input may be part of a longer one
        rows, state = depthwise_norm(part, state, *parameters, EPS, implementation=implementation)
        outputs.append(rows)
        at += step
    return torch.cat(outputs, dim=1), state


@needs_triton
@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize(
    ("batch", "channels", "kernel", "steps"),
    [(1, 192, 7, [2, 2, 2]), (3, 5, 7, [1, 9, 3]), (2, 123, 3, [1, 1, 4]), (16, 1, 2, [2])],
)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_is_a_convolution_and_a_norm(
    interpreted, implementation, batch, channels, kernel, steps, dtype, error
):
    if channels == 1:  # its norm is the offset alone
        error = 1e-2 if dtype == torch.bfloat16 else error
    x = noise(batch, channels, sum(steps)).to(dtype).float()
    sizes = ((channels, kernel), (channels,), (channels,), (channels,))
    parameters = [noise(*size).to(dtype).float() + 0.5 * i for i, size in enumerate(sizes)]
    parameters = [p.to(dtype).float() for p in parameters]
    rows, state = interpreted(blocks, implementation, x, parameters, steps, dtype)
    weight, bias, gain, offset = (p.double() for p in parameters)
    whole = F.pad(x.double(), (kernel - 1, 0))
    y = F.conv1d(whole, weight[:, None], bias, groups=channels).transpose(1, 2)
    wanted = F.layer_norm(y, (channels,), gain, offset, EPS)
    assert rows.dtype == dtype and rows.shape == wanted.shape
    assert_close(rows.double(), wanted, error)
    assert torch.equal(state.float(), whole[..., -(kernel - 1) :].float())


def test_what_does_not_fit():
    x, parameters = torch.zeros(2, 3, 4), [torch.zeros(3, 7), *torch.zeros(3, 3)]
    with pytest.raises(ValueError, match="do not fit a weight"):
        depthwise_norm(x, torch.zeros(2, 3, 7), *parameters, EPS)
    with pytest.raises(ValueError, match="do not fit a weight"):
        depthwise_norm(x[:, :2], torch.zeros(2, 2, 6), *parameters, EPS)
    assert not fuses_depthwise(x, parameters[0])
    with pytest.raises(RuntimeError, match="float64"):
        fuses_depthwise(x.double(), parameters[0], "triton")
    with pytest.raises(RuntimeError, match="5000 channels"):
        fuses_depthwise(x, torch.zeros(5000, 7), "triton")
    with pytest.raises(RuntimeError, match="reaches over 2147483648 numbers"):
        long = torch.empty(1, 2, 1 << 31, device="meta")[..., :1]
        fuses_depthwise(long, parameters[0], "triton")
