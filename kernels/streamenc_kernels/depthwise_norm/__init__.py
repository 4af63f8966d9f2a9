"""The start of a ConvNeXt block on a stream: a causal convolution of each channel by itself, and a
norm over the channels of each position."""

from __future__ import annotations

from torch import Tensor

from streamenc_kernels.depthwise_norm.definition import depthwise_norm_torch
from streamenc_kernels.dispatch import Implementation, cannot_triton, takes_triton

# Channels that a program holds; and the kernel counts a lane's numbers in 32 bits.
MAX_CHANNELS = 4096
MAX_NUMBERS = (1 << 31) - 1


def depthwise_norm(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    eps: float,
    *,
    implementation: Implementation | None = None,
) -> tuple[Tensor, Tensor]:
    """LayerNorm over the channels of the convolution of (state, x).

    x               (batch, channels, time).
    state           (batch, channels, kernel - 1), the inputs before x.
    weight, bias    (channels, kernel) and (channels,), of the convolution.
    gain, offset    (channels,) each, of the norm, with its `eps`.
    implementation  "torch", "triton", or None for the kernel where it can run, on a GPU.
    Returns the normed outputs (batch, time, channels), and the state after x: new memory.
    Raises ValueError for shapes that do not fit, RuntimeError for a choice that cannot run.
    """
    _check(x, state, weight)
    if fuses_depthwise(x, weight, implementation):
        # Not before it is needed: it imports Triton.
        from streamenc_kernels.depthwise_norm.triton import normed

        return normed(x, state, weight, bias, gain, offset, eps)
    return depthwise_norm_torch(x, state, weight, bias, gain, offset, eps)


def fuses_depthwise(
    x: Tensor, weight: Tensor, implementation: Implementation | None = None
) -> bool:
    """Whether `depthwise_norm` runs as one kernel for such inputs.

    Raises RuntimeError for a choice that cannot run.
    """

    def cannot() -> str:
        if not x.is_floating_point() or x.dtype.itemsize > 4:
            return f"the inputs are {x.dtype}"
        if len(weight) > MAX_CHANNELS:
            return f"{len(weight)} channels; it takes up to {MAX_CHANNELS}"
        # The last number's place in a lane, as seen from its first.
        reach = sum(
            (size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True)
        )
        if reach > MAX_NUMBERS:
            return f"a lane reaches over {reach} numbers; it counts to {MAX_NUMBERS}"
        return cannot_triton(x.device)

    return takes_triton("depthwise_norm", x.device, implementation, cannot)


def _check(x: Tensor, state: Tensor, weight: Tensor) -> None:
    channels, kernel = weight.shape
    if x.shape[1] != channels or state.shape != (len(x), channels, kernel - 1):
        raise ValueError(
            f"x {tuple(x.shape)} and state {tuple(state.shape)} do not fit a weight "
            f"{tuple(weight.shape)}: wanted (batch, channels, time) and (batch, channels, kernel - "
            "1) for (channels, kernel)"
        )
