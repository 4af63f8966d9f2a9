"""A causal convolution of the inputs that a stream remembers and of its next ones.

It takes both where they lie, without putting them together, and can apply ELU to what comes in and
add a residual to what comes out: a residual unit of SEANet is two of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamenc_kernels.causal_conv.definition import causal_conv_torch
from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton

# The kernel counts in 32 bits.
MAX_NUMBERS = (1 << 31) - 1
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def causal_conv(
    x: Tensor,
    state: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
    elu: bool = False,
    residual: Tensor | None = None,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Convolves (state, x) along time, and gives what the next step needs of them.

    x               (batch, in_channels, time), time a multiple of the stride.
    state           (batch, in_channels, context), the inputs before x, where context is
                    (kernel - 1) * dilation + 1 - stride; None where that is 0. With `elu` they have
                    gone through it.
    weight          (out_channels, in_channels, kernel); or (channels, 1, kernel): depthwise, each
                    channel by itself.
    bias            (out_channels,).
    elu             Whether the convolution sees ELU(x) instead of x.
    residual        (batch, out_channels, time / stride), added to the result.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Returns the outputs (batch, out_channels, time / stride), and the state after x: new memory, the
    old one stays as it is. In float32 the kernel's products have 3 x TF32, near float32.
    Raises ValueError for shapes that do not fit, RuntimeError for a choice that cannot run.
    """
    _check(x, state, weight, bias, stride, dilation, residual)
    if not fuses_conv(x, weight, implementation, state):
        return causal_conv_torch(
            x, state, weight, bias, stride=stride, dilation=dilation, elu=elu, residual=residual
        )
    # Not before it is needed: it imports Triton.
    from streamenc_kernels.causal_conv.triton import convolve

    return convolve(x, state, weight, bias, stride, dilation, elu, residual)


def fuses_conv(
    x: Tensor,
    weight: Tensor,
    implementation: Implementation | None = None,
    state: Tensor | None = None,
) -> bool:
    """Whether `causal_conv` runs as one kernel for such inputs, or torch operator by operator.

    Raises RuntimeError for a choice that cannot run.
    """
    return takes_triton(
        "causal_conv", x.device, implementation, lambda: cannot_convolve(x, weight, state)
    )


def cannot_convolve(x: Tensor, weight: Tensor, state: Tensor | None = None) -> str:
    """Why the Triton kernel cannot run for inputs like `x`; "" where it can."""
    return cannot_triton(x.device) or _misfit(x, weight, state)


def _misfit(x: Tensor, weight: Tensor, state: Tensor | None) -> str:
    if x.dtype not in TYPES or weight.dtype != x.dtype:
        return f"the input is {x.dtype} and the weight {weight.dtype}"
    # A lane's part of a state may lie far from the next one's, among all that these remember.
    reach = max(_reach(tensor) for tensor in (x, state) if tensor is not None)
    most = max(reach, weight.numel(), x.shape[0] * x.shape[2] * weight.shape[0])
    if most > MAX_NUMBERS:
        return f"tensors of {most} numbers; it counts to {MAX_NUMBERS}"
    if not weight.is_contiguous():
        return "the weight is not contiguous"
    return ""


def _reach(x: Tensor) -> int:
    """The last number's place, as seen from the first."""
    return sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))


def _check(
    x: Tensor,
    state: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    dilation: int,
    residual: Tensor | None,
) -> None:
    fits = x.ndim == weight.ndim == 3 and (
        weight.shape[1] == x.shape[1] or (weight.shape[0], weight.shape[1]) == (x.shape[1], 1)
    )
    if not fits:
        raise ValueError(
            f"x {tuple(x.shape)} and weight {tuple(weight.shape)} do not fit: wanted (batch, "
            "in_channels, time) and (out_channels, in_channels, kernel), or (channels, 1, kernel)"
        )
    batch, channels, time = x.shape
    outputs, _, kernel = weight.shape
    context = (kernel - 1) * dilation + 1 - stride
    if context < 0 or not time or time % stride:
        raise ValueError(
            f"{time} inputs for a kernel of {kernel}, dilated by {dilation}, and a stride of "
            f"{stride}: wanted a multiple of the stride, and kernels that touch"
        )
    before = None if state is None else tuple(state.shape)
    if before != ((batch, channels, context) if context else None):
        wanted = (batch, channels, context) if context else None
        raise ValueError(f"a state of {before}; wanted {wanted}")
    if bias is not None and bias.shape != (outputs,):
        raise ValueError(f"a bias of {tuple(bias.shape)}; wanted ({outputs},)")
    if residual is not None and residual.shape != (batch, outputs, time // stride):
        raise ValueError(
            f"a residual of {tuple(residual.shape)}; wanted {(batch, outputs, time // stride)}"
        )
