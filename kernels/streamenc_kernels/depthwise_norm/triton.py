"""The Triton kernel of `depthwise_norm`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def normed(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    gain: Tensor,
    offset: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """As `depthwise_norm`."""
    batch, channels, time = x.shape
    kernel = weight.shape[1]
    rows = x.new_empty(batch, time, channels)
    after = state.new_empty(state.shape)
    # Triton launches on the current device.
    with torch.cuda.device_of(x):
        depthwise_norm_kernel[(time, batch)](
            x,
            state,
            weight,
            bias,
            gain,
            offset,
            rows,
            after,
            time,
            eps,
            *x.stride(),
            *state.stride(),
            *weight.stride(),
            **constants(channels, kernel),
            **OPTIONS,
        )
    return rows, after


def constants(channels: int, kernel: int) -> dict[str, int]:
    """What a block is compiled for."""
    return {"CHANNELS": channels, "KERNEL": kernel, "WIDTH": triton.next_power_of_2(channels)}


@triton.jit
def _seen(x, state, at, x_time, state_time, channel, there, KERNEL: tl.constexpr):
    """Number `at` of all channels, counted from the start of the state; pointers and strides are
    each channel's."""
    place = at + tl.zeros_like(channel)
    old = place < KERNEL - 1
    before = tl.load(state + place * state_time, mask=there & old, other=0.0)
    new = tl.load(
        x + (place - (KERNEL - 1)) * x_time, mask=there & (place >= KERNEL - 1), other=0.0
    )
    return before.to(tl.float32) + new.to(tl.float32)


@triton.jit
def depthwise_norm_kernel(
    x,
    state,
    weight,
    bias,
    gain,
    offset,
    rows,
    after,
    time,
    eps,
    x_lane,
    x_channel,
    x_time,
    state_lane,
    state_channel,
    state_time,
    weight_channel,
    weight_number,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """All channels of one position of one lane; the first one's program writes the state."""
    index = tl.program_id(0)
    lane = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, WIDTH)
    there = channel < CHANNELS
    x += lane * x_lane + channel * x_channel
    state += lane * state_lane + channel * state_channel
    y = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    for number in tl.static_range(KERNEL):
        factor = weight + channel * weight_channel + number * weight_number
        seen = _seen(x, state, index + number, x_time, state_time, channel, there, KERNEL)
        y += tl.load(factor, mask=there, other=0.0).to(tl.float32) * seen
    mean = tl.sum(y, axis=0) / CHANNELS
    apart = tl.where(there, y - mean, 0.0)
    spread = 1.0 / tl.sqrt_rn(tl.sum(apart * apart, axis=0) / CHANNELS + eps)
    g = tl.load(gain + channel, mask=there, other=0.0).to(tl.float32)
    o = tl.load(offset + channel, mask=there, other=0.0).to(tl.float32)
    out = rows + (lane * time + index) * CHANNELS + channel
    tl.store(out, (apart * spread * g + o).to(rows.dtype.element_ty), mask=there)
    if index == 0:
        for number in tl.static_range(KERNEL - 1):
            kept = _seen(x, state, time + number, x_time, state_time, channel, there, KERNEL)
            left = after + (lane * CHANNELS + channel) * (KERNEL - 1) + number
            tl.store(left, kept.to(after.dtype.element_ty), mask=there)
