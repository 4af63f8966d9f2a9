"""overlap_add against torch's transposed convolution, as torch and as Triton kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc_kernels import overlap_add
from streamenc_kernels.dispatch import Implementation
from streamenc_kernels.overlap_add import adds_fused
from tests.support.compare import assert_close
from tests.support.interpreter import needs_triton


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def added(
    implementation: Implementation, pieces: Tensor, stride: int, steps: list[int], bias: bool
) -> tuple[Tensor, Tensor | None]:
    """In steps of so many pieces, from no state on; the pieces lie as a product gives them, or the
    other way round."""
    offset = noise(pieces.shape[2], dtype=pieces.dtype) if bias else None
    outputs, state, at = [], None, 0
    for step in steps:
        part = pieces[:, at : at + step]
        if step % 2:
            part = part.transpose(1, 2).contiguous().transpose(1, 2)
        y, state = overlap_add(part, state, offset, stride, implementation=implementation)
        assert y.is_contiguous()
        outputs.append(y)
        at += step
    return torch.cat(outputs, dim=-1), state


@needs_triton
@pytest.mark.parametrize("implementation", ["torch", "triton"])
@pytest.mark.parametrize(
    ("batch", "channels", "stride", "size", "steps", "bias"),
    [
        (1, 1, 4, 8, [1, 1, 1], True),
        (3, 5, 3, 6, [2, 1, 4, 5], True),
        (2, 64, 8, 16, [2, 1], False),
        (2, 7, 5, 5, [3, 2], True),
        (23, 2, 1, 2, [1, 3], True),
    ],
)
def test_it_is_the_end_of_a_transposed_convolution(
    interpreted, implementation, batch, channels, stride, size, steps, bias
):
    pieces = noise(batch, sum(steps), channels, size)
    y, state = interpreted(added, implementation, pieces, stride, steps, bias)
    # Each number of a piece is an input of its own: the weight only says where it goes.
    inputs = pieces.permute(0, 2, 3, 1).reshape(batch * channels, size, -1).double()
    whole = F.conv_transpose1d(inputs, torch.eye(size, dtype=torch.float64)[:, None], None, stride)
    whole = whole.view(batch, channels, -1)
    end = sum(steps) * stride
    wanted = whole[..., :end] + (noise(channels).double()[:, None] if bias else 0.0)
    assert_close(y.double(), wanted, 1e-6)
    if size == stride:
        assert state is None
    else:
        assert_close(state.double(), whole[..., end:], 1e-6)


@needs_triton
def test_bfloat16_is_summed_in_float32(interpreted):
    pieces = noise(2, 3, 4, 6, dtype=torch.bfloat16)
    y, _ = interpreted(added, "triton", pieces, 3, [3], True)
    exact, _ = interpreted(added, "torch", pieces.double(), 3, [3], True)
    assert y.dtype == torch.bfloat16
    assert_close(y.double(), exact, 2e-2)


def test_what_does_not_fit():
    pieces = torch.zeros(2, 3, 4, 6)
    with pytest.raises(ValueError, match="pieces of 6 at a stride of 4"):
        overlap_add(pieces, None, None, 4)
    with pytest.raises(ValueError, match="wanted \\(2, 4, 3\\)"):
        overlap_add(pieces, torch.zeros(2, 4, 2), None, 3)
    with pytest.raises(ValueError, match="wanted \\(4,\\)"):
        overlap_add(pieces, None, torch.zeros(3), 3)
    assert not adds_fused(pieces, pieces.numel())
    with pytest.raises(RuntimeError, match="int64"):
        overlap_add(pieces.long(), None, None, 3, implementation="triton")
