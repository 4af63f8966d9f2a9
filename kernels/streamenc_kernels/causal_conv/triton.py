"""The Triton kernels of `causal_conv`; kernels/README.md says why they are laid out so."""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# From so many outputs of a lane on, tiles are for many. Below, a window longer than a chunk is
# shared out over programs.
MANY_TIMES, CHUNK = 64, 512
# Fused multiply-adds are what the definition's products do as well.
OPTIONS = {"enable_fp_fusion": True}
# Numbers that one program carries over to the next state, or adds up.
BLOCK = 1024


def convolve(
    x: Tensor,
    state: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    dilation: int,
    elu: bool,
    residual: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """As `causal_conv`."""
    batch, channels, time = x.shape
    outputs, each, kernel = weight.shape
    times = time // stride
    rows, depth = batch * times, channels * kernel
    y = x.new_empty(batch, outputs, times)
    following = None if state is None else x.new_empty(state.shape)
    if state is not None and state.stride()[1:] != (state.shape[2], 1):
        state = state.contiguous()
    if residual is not None:
        residual = residual.contiguous()
    carried = 0 if following is None else triton.cdiv(following.numel(), BLOCK)
    # What stands for a tensor that there is none of is not read.
    tensors = (
        x,
        y if state is None else state,
        weight,
        weight if bias is None else bias,
        y if residual is None else residual,
        y,
        y if following is None else following,
    )
    places = (
        stride,
        dilation,
        0 if state is None else state.shape[2],
        *x.stride(),
        0 if state is None else state.stride(0),
    )
    flags = {
        "KERNEL": kernel,
        "REMEMBERS": state is not None,
        "ELU": elu,
        "BIAS": bias is not None,
        "RESIDUAL": residual is not None,
        "BLOCK": BLOCK,
        **OPTIONS,
    }
    # Triton launches on the current device.
    with torch.cuda.device_of(x):
        if each < channels:
            causal_depthwise_kernel[(triton.cdiv(y.numel(), BLOCK) + carried,)](
                *tensors, batch, times, channels, *places, **flags, num_warps=8
            )
            return y, following
        sizes = tile(outputs, times)
        chunks = split(depth, times)
        blocks = triton.cdiv(rows, sizes["ROWS"]) * triton.cdiv(outputs, sizes["OUTPUTS"]) * chunks
        partial = x.new_empty((chunks, outputs, rows), dtype=torch.float32) if chunks > 1 else y
        causal_conv_kernel[(blocks + carried,)](
            *tensors,
            partial,
            rows,
            times,
            outputs,
            depth,
            *places,
            SPLIT=chunks > 1,
            PRECISION=precision(x.dtype),
            **sizes,
            **flags,
            num_warps=warps(sizes),
        )
        if chunks > 1:
            causal_conv_sum_kernel[(triton.cdiv(rows * outputs, BLOCK),)](
                partial,
                *tensors[3:6],
                rows,
                times,
                outputs,
                chunks,
                BIAS=bias is not None,
                RESIDUAL=residual is not None,
                BLOCK=BLOCK,
                num_warps=4,
                **OPTIONS,
            )
    return y, following


def tile(outputs: int, times: int) -> dict[str, int]:
    """The sizes that a convolution is compiled for. What one lane has decides alone, so that the
    number of lanes changes no result."""
    few = times < MANY_TIMES
    return {
        "OUTPUTS": min(64 if few else 128, max(16, triton.next_power_of_2(outputs))),
        "ROWS": 32,
        "DEPTH": 32 if few else 16,
        "CHUNK": CHUNK,
        "STAGES": 4,
        "DEPTH_AXIS": 1 if few else 0,
    }


def split(depth: int, times: int) -> int:
    """Into how many chunks a window of `depth` inputs is shared out, each a program's own; a second
    launch adds up what they give, in order. As for tiles, the number of lanes does not matter."""
    return -(-depth // CHUNK) if times < MANY_TIMES else 1


def warps(sizes: dict[str, int]) -> int:
    return 8 if sizes["OUTPUTS"] == 128 else 4


def precision(dtype: torch.dtype) -> str:
    """Of the products. Half floats are TF32 as they are."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


@triton.jit
def _elu(x):
    """exp(x) - 1 below 0; near it as a series, as the difference would lose what is small."""
    series = 1 / 5040 + x * (1 / 40320)
    series = 1 / 720 + x * series
    series = 1 / 120 + x * series
    series = 1 / 24 + x * series
    series = 1 / 6 + x * series
    series = 0.5 + x * series
    series = 1 + x * series
    below = tl.where(x > -0.5, x * series, tl.exp(x) - 1)
    return tl.where(x > 0, x, below)


@triton.jit
def _finish(
    total,
    bias,
    residual,
    y,
    out,
    row,
    there,
    times,
    outputs,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """Stores sums, with what is added to them."""
    at = (row // times).to(tl.int64) * outputs * times + out * times + row % times
    if BIAS:
        total += tl.load(bias + out, mask=there, other=0.0).to(tl.float32)
    if RESIDUAL:
        total += tl.load(residual + at, mask=there, other=0.0).to(tl.float32)
    tl.store(y + at, total.to(y.dtype.element_ty), mask=there)


@triton.jit(
    do_not_specialize=[
        "rows",
        "times",
        "outputs",
        "stride",
        "dilation",
        "context",
        "x_lane",
        "x_channel",
        "state_lane",
    ],
    do_not_specialize_on_alignment=["x", "state", "residual"],
)
def causal_conv_kernel(
    x,
    state,
    weight,
    bias,
    residual,
    y,
    following,
    partial,
    rows,
    times,
    outputs,
    depth,
    stride,
    dilation,
    context,
    x_lane,
    x_channel,
    x_time,
    state_lane,
    KERNEL: tl.constexpr,
    REMEMBERS: tl.constexpr,
    ELU: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    CHUNK: tl.constexpr,
    STAGES: tl.constexpr,
    DEPTH_AXIS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile of output channels x rows, a row being one position of one lane; the last programs
    write the state that follows.

    The weight (outputs, depth) times the windows (depth, rows), which are gathered from the state
    and from x. depth is channels x KERNEL.

    DEPTH_AXIS  Of the gathered tile: the last axis is the one along which neighbours are loaded.
    """
    out_blocks = tl.cdiv(outputs, OUTPUTS)
    parts = 1
    if SPLIT:
        parts = tl.cdiv(depth, CHUNK)
    program = tl.program_id(0)
    computing = tl.cdiv(rows, ROWS) * out_blocks * parts
    if program >= computing:
        _carry(
            x,
            state,
            following,
            program - computing,
            rows // times,
            times * stride,
            depth // KERNEL,
            context,
            x_lane,
            x_channel,
            x_time,
            state_lane,
            ELU,
            BLOCK,
        )
    else:
        out = program % out_blocks * OUTPUTS + tl.arange(0, OUTPUTS)
        part = program // out_blocks % parts
        row = program // out_blocks // parts * ROWS + tl.arange(0, ROWS)
        time = row % times
        lane = row // times
        # Of each window's first input, seen from the first one of x.
        start = tl.expand_dims(time * stride - context, DEPTH_AXIS)
        x_row = tl.expand_dims(lane * x_lane, DEPTH_AXIS) + start * x_time
        state_row = tl.expand_dims(lane * state_lane + time * stride, DEPTH_AXIS)
        here = tl.expand_dims(row < rows, DEPTH_AXIS)
        weight_row = weight + out[:, None] * depth
        wanted = (out < outputs)[:, None]
        begin, end = 0, depth
        if SPLIT:
            begin = part * CHUNK
            end = tl.minimum(begin + CHUNK, depth)
        total = tl.zeros((OUTPUTS, ROWS), tl.float32)
        for at in tl.range(begin, end, DEPTH, num_stages=STAGES):
            k = at + tl.arange(0, DEPTH)
            inside = k < depth
            w = tl.load(weight_row + k[None, :], mask=wanted & inside[None, :], other=0.0)
            w = w.to(tl.float32)
            of = tl.expand_dims(k, 1 - DEPTH_AXIS).to(tl.uint32)  # divides with fewer operations
            channel = (of // KERNEL).to(tl.int32)
            tap = (of % KERNEL).to(tl.int32) * dilation
            value_at = x + (x_row + channel * x_channel + tap * x_time)
            if REMEMBERS:
                old = start + tap < 0
                value_at = tl.where(old, state + (state_row + channel * context + tap), value_at)
            seen = here & tl.expand_dims(inside, 1 - DEPTH_AXIS)
            value = tl.load(value_at, mask=seen, other=0.0).to(tl.float32)
            if ELU:
                # As the state holds it, so that a step sees what later ones will see.
                raised = _elu(value).to(x.dtype.element_ty).to(tl.float32)
                if REMEMBERS:
                    raised = tl.where(old, value, raised)
                value = raised
            if DEPTH_AXIS == 1:
                value = tl.trans(value)
            total = tl.dot(w, value, total, input_precision=PRECISION)
        there = wanted & (row < rows)[None, :]
        if SPLIT:
            partial += part.to(tl.int64) * outputs * rows
            tl.store(partial + out[:, None] * rows + row[None, :], total, mask=there)
        else:
            _finish(
                total,
                bias,
                residual,
                y,
                out[:, None],
                row[None, :],
                there,
                times,
                outputs,
                BIAS,
                RESIDUAL,
            )


@triton.jit(
    do_not_specialize=[
        *("lanes", "times", "channels", "stride", "dilation", "context"),
        *("x_lane", "x_channel", "state_lane"),
    ],
    do_not_specialize_on_alignment=["x", "state", "residual"],
)
def causal_depthwise_kernel(
    x,
    state,
    weight,
    bias,
    residual,
    y,
    following,
    lanes,
    times,
    channels,
    stride,
    dilation,
    context,
    x_lane,
    x_channel,
    x_time,
    state_lane,
    KERNEL: tl.constexpr,
    REMEMBERS: tl.constexpr,
    ELU: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Numbers of the result one after the other as they lie in it, each channel by itself; the last
    programs write the state that follows."""
    program = tl.program_id(0)
    each = channels * times
    computing = tl.cdiv(lanes * each, BLOCK)
    if program >= computing:
        _carry(
            x,
            state,
            following,
            program - computing,
            lanes,
            times * stride,
            channels,
            context,
            x_lane,
            x_channel,
            x_time,
            state_lane,
            ELU,
            BLOCK,
        )
    else:
        i = program * BLOCK + tl.arange(0, BLOCK)
        there = i < lanes * each
        lane = i // each
        channel = i % each // times
        time = i % times
        x_row = lane * x_lane + channel * x_channel
        state_row = lane * state_lane + channel * context
        total = tl.zeros((BLOCK,), tl.float32)
        for tap in tl.static_range(KERNEL):
            # Seen from the first number of x.
            position = time * stride + tap * dilation - context
            at = x + (x_row + position * x_time)
            if REMEMBERS:
                old = position < 0
                at = tl.where(old, state + (state_row + position + context), at)
            value = tl.load(at, mask=there, other=0.0).to(tl.float32)
            if ELU:
                raised = _elu(value).to(x.dtype.element_ty).to(tl.float32)
                if REMEMBERS:
                    raised = tl.where(old, value, raised)
                value = raised
            w = tl.load(weight + channel * KERNEL + tap, mask=there, other=0.0)
            total += w.to(tl.float32) * value
        _finish(
            total,
            bias,
            residual,
            y,
            channel,
            lane * times + time,
            there,
            times,
            channels,
            BIAS,
            RESIDUAL,
        )


@triton.jit
def _carry(
    x,
    state,
    following,
    block,
    lanes,
    time,
    channels,
    context,
    x_lane,
    x_channel,
    x_time,
    state_lane,
    ELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Writes some of the state that follows: the last inputs, some of the state if x is short."""
    i = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    each = channels * context
    there = i < lanes.to(tl.int64) * each
    lane = i // each
    within = (i % each).to(tl.int32)
    channel = within // context
    at = within % context + time
    old = at < context
    kept = tl.load(state + lane * state_lane + channel * context + at, mask=there & old, other=0.0)
    x_at = lane * x_lane + channel * x_channel + (at - context) * x_time
    new = tl.load(x + x_at, mask=there & (at >= context), other=0.0)
    if ELU:
        new = _elu(new.to(tl.float32)).to(new.dtype)
    tl.store(following + i, tl.where(old, kept, new), mask=there)


@triton.jit(do_not_specialize=["rows", "times", "outputs", "chunks"])
def causal_conv_sum_kernel(
    partial,
    bias,
    residual,
    y,
    rows,
    times,
    outputs,
    chunks,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds up what each chunk gave, (chunks, outputs, rows), in order."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < rows * outputs
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(chunks):
        total += tl.load(partial + i, mask=there, other=0.0)
        partial += rows.to(tl.int64) * outputs
    _finish(total, bias, residual, y, i // rows, i % rows, there, times, outputs, BIAS, RESIDUAL)
