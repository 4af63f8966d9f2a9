"""The Triton kernel of `overlap_add`; kernels/README.md says why it is laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 512  # of a program
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


def add(
    pieces: Tensor, state: Tensor | None, bias: Tensor | None, stride: int
) -> tuple[Tensor, Tensor | None]:
    """As `overlap_add`."""
    batch, time, channels, size = pieces.shape
    y = pieces.new_empty(batch, channels, time * stride)
    before = pieces[:, 0, :, : size - stride] if state is None else state
    # Triton launches on the current device.
    with torch.cuda.device_of(pieces):
        overlap_add_kernel[(triton.cdiv(channels * time * stride, NUMBERS), batch)](
            pieces,
            before,
            pieces if bias is None else bias,
            y,
            time,
            channels,
            *pieces.stride(),
            *before.stride(),
            STRIDE=stride,
            OVERLAPS=size > stride,
            CARRIED=state is not None and size > stride,
            BIASED=bias is not None,
            NUMBERS=NUMBERS,
            **OPTIONS,
        )
    return y, None if size == stride else pieces[:, -1, :, stride:]


@triton.jit
def overlap_add_kernel(
    pieces,
    state,
    bias,
    y,
    time,
    channels,
    piece_lane,
    piece_time,
    piece_channel,
    piece_number,
    state_lane,
    state_channel,
    state_number,
    STRIDE: tl.constexpr,
    OVERLAPS: tl.constexpr,
    CARRIED: tl.constexpr,
    BIASED: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Numbers one after the other as the result holds them: each a piece's own, what the one
    before reaches into it, and the channel's bias, in this order, summed in float32."""
    lane = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * NUMBERS + tl.arange(0, NUMBERS)
    there = at < channels * time * STRIDE
    channel = at // (time * STRIDE)
    index = at // STRIDE % time
    number = at % STRIDE
    here = pieces + lane * piece_lane + index * piece_time + channel * piece_channel
    total = tl.load(here + number * piece_number, mask=there, other=0.0).to(tl.float32)
    if OVERLAPS:
        earlier = here - piece_time + (STRIDE + number) * piece_number
        total += tl.load(earlier, mask=there & (index > 0), other=0.0).to(tl.float32)
    if CARRIED:
        carried = state + lane * state_lane + channel * state_channel + number * state_number
        total += tl.load(carried, mask=there & (index == 0), other=0.0).to(tl.float32)
    if BIASED:
        total += tl.load(bias + channel, mask=there, other=0.0).to(tl.float32)
    out = y + lane * channels * time * STRIDE + at
    tl.store(out, total.to(y.dtype.element_ty), mask=there)
