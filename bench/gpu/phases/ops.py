"""What one op is to be checked and timed by, and the smaller ops of a step.

A new op gets a row here: a `Plain`, in `step_ops`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from bench.gpu.phase import Found
from bench.gpu.phases.convolutions import Convolution, mimi
from bench.gpu.timing import FLOAT32_LIMIT, poison, relative_error
from streamenc_kernels import (
    causal_conv,
    causal_conv_torch,
    compress_spectrum,
    depthwise_norm,
    fused_linear,
    overlap_add,
    overlap_add_torch,
    rotary,
    rotary_table,
    write_rows,
    write_rows_torch,
)
from streamenc_kernels.compress_spectrum.definition import compress_spectrum_torch
from streamenc_kernels.depthwise_norm.definition import depthwise_norm_torch
from streamenc_kernels.dispatch import Implementation
from streamenc_kernels.fused_linear.definition import Activation, RowNorm, fused_linear_torch

KERNEL, PLAIN = "kernel", "plain torch"
HALF_LIMIT = 1e-2


class Op(Protocol):
    """One op at one size.

    title   Of its rows, and what its times are proved by.
    nbytes, flops  That no implementation can do without: all inputs once in, all outputs once out.
    """

    @property
    def title(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def flops(self) -> int: ...

    def check(self, device: torch.device, implementation: Implementation) -> Found:
        """The kernel against the definition in float64, on inputs of its own."""
        ...

    def ways(
        self, device: torch.device, implementation: Implementation
    ) -> dict[str, Callable[[int], Callable[[], Any]]]:
        """What is timed: each way gives, for a seed, a call on inputs of that seed."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """An op that gives a tensor, or some, and the same ones when it is called once more.

    make  Inputs on a device, drawn with a seed: a tuple of tensors, and whatever else.
    ours  The kernel on them; `definition` in plain torch, which also takes them in float64.
    """

    title: str
    nbytes: int
    flops: int
    make: Callable[[torch.device, int], tuple[Any, ...]]
    ours: Callable[..., Any]
    definition: Callable[..., Any]
    limit: float = FLOAT32_LIMIT

    def check(self, device: torch.device, implementation: Implementation) -> Found:
        inputs = self.make(device, 1000)
        # Before ours, which may write to them.
        wide = [_widened(x) for x in inputs]
        poison(device)
        ours = _tensors(self.ours(*inputs, implementation=implementation))
        wanted = _tensors(self.definition(*wide))
        if [x.shape for x in ours] != [x.shape for x in wanted]:
            return Found(wrong=f"shapes are {[tuple(x.shape) for x in ours]}")
        errors = [relative_error(x, y) for x, y in zip(ours, wanted, strict=True)]
        return Found(max(errors), self.limit)

    def ways(
        self, device: torch.device, implementation: Implementation
    ) -> dict[str, Callable[[int], Callable[[], Any]]]:
        return {
            KERNEL: lambda seed: partial(
                self.ours, *self.make(device, seed), implementation=implementation
            ),
            PLAIN: lambda seed: partial(self.definition, *self.make(device, seed)),
        }


def _widened(x: Any) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.double() if x.is_floating_point() else x.clone()


def _tensors(found: Any) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else [x for x in found if isinstance(x, Tensor)]


def step_ops(lanes: int, *, small: bool = False) -> Iterator[Op]:
    """What else steps of Mimi launch: a rotary table, what is left in the lanes, overlaps."""
    time, dim, theta = 2, 64, 1e4

    def positions(device: torch.device, seed: int) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed)
        # An hour at 25 positions a second.
        return torch.randint(90_000, (lanes,), generator=generator, device=device)

    yield Plain(
        f"rotary_table, {lanes:,} lanes",
        nbytes=lanes * (8 + 2 * 4 * time * dim // 2),
        flops=2 * lanes * time * dim,
        make=lambda device, seed: (positions(device, seed), time, dim, theta),
        ours=rotary_table,
        definition=lambda position, time, dim, theta: rotary(
            position[:, None] + torch.arange(time, device=position.device),
            dim,
            theta,
            torch.float64,
        ),
    )
    convolutions = list(mimi(lanes, small=small))
    tails = [(conv.ins, conv.context) for conv in convolutions if conv.context]

    def states(device: torch.device, seed: int) -> tuple[Tensor, ...]:
        """The index, then pools of twice as many lanes, then as many new values."""
        generator = torch.Generator(device).manual_seed(seed)
        normal = partial(torch.randn, generator=generator, device=device)
        places = torch.randperm(2 * lanes, generator=generator, device=device)[:lanes]
        pools = [normal(2 * lanes, *tail) for tail in tails]
        return places, *pools, *(normal(lanes, *tail) for tail in tails)

    def written(
        write: Callable[..., None], places: Tensor, *tensors: Tensor, **how: Any
    ) -> list[Tensor]:
        pools, values = tensors[: len(tails)], tensors[len(tails) :]
        write(pools, values, lanes=places, **how)
        return list(pools)

    numbers = lanes * sum(channels * context for channels, context in tails)
    yield Plain(
        f"write_rows, {lanes:,} lanes",
        nbytes=8 * (numbers + lanes),
        flops=0,
        make=states,
        ours=partial(written, write_rows),
        definition=partial(written, write_rows_torch),
        limit=0.0,
    )
    narrow, wide = (convolutions[index] for index in (2, -2))
    yield _unit(lanes, narrow, torch.float32)
    yield _unit(lanes, wide, torch.float32)
    yield _unit(lanes, wide, torch.bfloat16)
    yield _overlap(lanes, *((6, 3) if small else (480, 64)), 4)
    width = 32 if small else 512
    yield _linear(2 * lanes, width, 3 * width, begins=True)
    yield _linear(2 * lanes, width, 4 * width, begins=True, activation="gelu")
    yield _linear(2 * lanes, 4 * width, width, begins=False)
    yield _depthwise(lanes, *((8, 2) if small else (256, 7)))
    yield _spectrum(lanes, 9 if small else 241)


def _unit(lanes: int, conv: Convolution, dtype: torch.dtype) -> Op:
    """A convolution as the second half of a residual unit has it: ELU before, something beside."""

    def inputs(device: torch.device, seed: int) -> tuple[Any, ...]:
        layer, state, new, _ = conv.make(device, seed)
        generator = torch.Generator(device).manual_seed(seed)
        beside = torch.randn(
            lanes, conv.outs, conv.length // conv.stride, generator=generator, device=device
        )
        some = (new, state, layer.weight, layer.bias, beside)
        return *(None if x is None else x.detach().to(dtype) for x in some), conv

    def convolved(convolve: Callable[..., Any], *given: Any, **how: Any) -> Any:
        x, state, weight, bias, beside, conv = given
        shape = {"stride": conv.stride, "dilation": conv.dilation, "residual": beside}
        return convolve(x, state, weight, bias, elu=True, **shape, **how)

    half = dtype != torch.float32
    size = 2 if half else 4
    return Plain(
        f"causal_conv, {lanes:,} lanes, {conv.title}, {str(dtype).removeprefix('torch.')}",
        nbytes=size * (conv.nbytes // 4 + lanes * conv.outs * conv.length // conv.stride),
        flops=conv.flops,
        make=inputs,
        ours=partial(convolved, causal_conv),
        definition=partial(convolved, causal_conv_torch),
        limit=HALF_LIMIT if half else FLOAT32_LIMIT,
    )


def _linear(
    rows: int, ins: int, outs: int, *, begins: bool, activation: Activation | None = None
) -> Op:
    """A product of a transformer's layer: it begins a branch with a norm, or ends it on what goes
    past it."""

    def inputs(device: torch.device, seed: int) -> tuple[Any, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        normal = partial(torch.randn, generator=generator, device=device)
        given = normal(rows, ins), normal(outs, ins) / ins**0.5
        return *given, normal(ins), normal(ins), None if begins else normal(rows, outs)

    def computed(compute: Callable[..., Tensor], *given: Any, **how: Any) -> Tensor:
        x, weight, gain, offset, beside = given
        norm = RowNorm("layer", gain, offset, 1e-5) if begins else None
        return compute(x, weight, None, norm=norm, activation=activation, residual=beside, **how)

    what = "norm, product" if begins else "product, sum"
    return Plain(
        f"fused_linear, {rows:,} rows, {ins} to {outs}: {what}{', gelu' * bool(activation)}",
        nbytes=4 * (rows * (ins + outs + outs * (not begins)) + ins * outs),
        flops=2 * rows * ins * outs,
        make=inputs,
        ours=partial(computed, fused_linear),
        definition=partial(computed, fused_linear_torch),
    )


def _depthwise(lanes: int, channels: int, kernel: int) -> Op:
    """The beginning of a ConvNeXt block of nano."""

    def inputs(device: torch.device, seed: int) -> tuple[Any, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        normal = partial(torch.randn, generator=generator, device=device)
        given = normal(lanes, channels, 1), normal(lanes, channels, kernel - 1)
        return *given, normal(channels, kernel), *(normal(channels) for _ in range(3)), 1e-6

    return Plain(
        f"depthwise_norm, {lanes:,} lanes, {channels} channels",
        nbytes=4 * lanes * channels * (1 + 2 * (kernel - 1) + 1),
        flops=2 * lanes * channels * kernel,
        make=inputs,
        ours=depthwise_norm,
        definition=depthwise_norm_torch,
    )


def _spectrum(lanes: int, bins: int) -> Op:
    """A frame of nano's spectrum."""

    def inputs(device: torch.device, seed: int) -> tuple[Any, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        normal = partial(torch.randn, generator=generator, device=device)
        return normal(lanes, 1, bins), normal(lanes, 1, bins), 0.3, 1e-6

    return Plain(
        f"compress_spectrum, {lanes:,} lanes",
        nbytes=4 * lanes * bins * 5,
        flops=10 * lanes * bins,
        make=inputs,
        ours=compress_spectrum,
        definition=compress_spectrum_torch,
    )


def _overlap(lanes: int, time: int, channels: int, stride: int) -> Op:
    """The end of the last transposed convolution of a step of Mimi's decoder."""

    def pieces(device: torch.device, seed: int) -> tuple[Any, ...]:
        generator = torch.Generator(device).manual_seed(seed)
        normal = partial(torch.randn, generator=generator, device=device)
        given = normal(lanes, time, channels, 2 * stride), normal(lanes, channels, stride)
        return *given, normal(channels), stride

    numbers = lanes * channels * stride * (time + 1)
    return Plain(
        f"overlap_add, {lanes:,} lanes",
        nbytes=4 * (2 * lanes * time * channels * stride + 2 * numbers),
        flops=2 * numbers,
        make=pieces,
        ours=overlap_add,
        definition=overlap_add_torch,
    )
