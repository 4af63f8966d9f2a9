"""Normalisation over time, on a stream: with running statistics, or with frozen ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from streamenc.errors import CannotLower
from streamenc.layers.streamed import Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue


class RunningNorm(Streamed):
    """(x - mean) / sqrt(variance + eps) * weight + bias, per channel; same shape.

    Offline models take mean and variance over the whole clip (GroupNorm with a group for each
    channel, and the z-normalised waveform), which a stream cannot know. Here a block of `block`
    positions (the first one has `first`) takes them over everything up to its own end:

        w = n / min(N + n, memory)                          n new positions after N earlier ones
        mean     <- mean + w d                              d = the block's mean - mean
        variance <- (1 - w) (variance + w d^2) + w v        v = the block's variance

    which is exactly the mean and variance of all N + n positions as long as they are no more than
    `memory`; from there on, older ones are forgotten exponentially, with that time constant.

    block   None takes each step as one block: the published meaning, where the step is a whole
            clip or window.
    affine  Whether weight and bias are learnt; else 1 and 0.

    State: positions so far, (batch,) int64, at most `memory`; mean and variance, (batch, channels,
    1). None where the statistics are frozen.
    """

    mean: Tensor | None
    variance: Tensor | None

    def __init__(
        self,
        channels: int,
        block: int | None,
        *,
        first: int | None = None,
        memory: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        super().__init__()
        self.block, self.first, self.memory, self.eps = block, first or block, memory, eps
        self.weight = nn.Parameter(torch.empty(channels, 1)) if affine else None
        self.bias = nn.Parameter(torch.empty(channels, 1)) if affine else None
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)

    @property
    def steps(self) -> Steps:
        if self.block is None or self.first is None:
            return Steps()
        return Steps(self.first, self.block, self.first, self.block)

    def reach(self, first: int, last: int) -> Span:
        if self.mean is not None:
            return first, last
        if self.block is None or self.first is None:
            raise TypeError("a norm whose blocks are its steps cannot say where these end")
        blocks, more = (-(-max(0, n + 1 - self.first) // self.block) for n in (first, last))
        start: int | None = None
        if self.memory is not None and self.memory <= self.block:  # each block forgets all before
            start = self.first + (blocks - 1) * self.block if blocks else 0
        return start, self.first - 1 + more * self.block

    def divide(self, first: int, block: int) -> None:
        """Takes blocks of so many positions from now on."""
        self.first, self.block = first, block

    def freeze(self, state: State) -> None:
        """Uses the statistics in `state`, that of another stream of batch 1, from now on."""
        assert isinstance(state, tuple)
        _, mean, variance = state
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
        self.mean, self.variance = mean[0].clone(), variance[0].clone()

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x, state
        if self.mean is not None and self.variance is not None:
            return self._normalised(x, self.mean, self.variance), None
        if isinstance(state, tuple):
            count, mean, variance = state
        else:
            count = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
            mean = variance = x.new_zeros(*x.shape[:2], 1)
        assert isinstance(count, Tensor)
        assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
        outputs = []
        for block in self._blocks(x, fresh=state is None):
            size = block.shape[-1]
            count = count + size
            if self.memory is not None:
                count = count.clamp(max=self.memory)
            new_mean = block.mean(dim=-1, keepdim=True)
            # In two passes by hand: torch's var_mean takes ten times as long on a CPU.
            spread = torch.linalg.vector_norm(block - new_mean, dim=-1, keepdim=True)
            new_variance = spread.square() / size
            w = (size / count.to(x.dtype)).clamp(max=1)[:, None, None]
            apart = new_mean - mean
            mean = mean + w * apart
            variance = (1 - w) * (variance + w * apart.square()) + w * new_variance
            outputs.append(self._normalised(block, mean, variance))
        y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return y, (count, mean, variance)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        running, frozen = None, None
        if self.mean is not None and self.variance is not None:
            frozen = self.mean, self.variance
        else:
            if not isinstance(state, tuple):
                raise CannotLower("norms of windows by themselves have no instructions")
            count, mean, variance = state
            assert isinstance(count, Tensor)
            assert isinstance(mean, Tensor) and isinstance(variance, Tensor)
            running = count, mean, variance
        return plan.running_norm(
            *(x, self.weight, self.bias, self.eps, running, frozen),
            block=x.rows if frozen or self.block is None else self.block,
            memory=self.memory,
        )

    def _blocks(self, x: Tensor, fresh: bool) -> tuple[Tensor, ...]:
        if self.block is None:
            return (x,)
        assert self.first is not None
        first = self.first if fresh else self.block
        starts = (0, *range(first, x.shape[-1], self.block))
        return tuple(x[..., start : start + self.block if start else first] for start in starts)

    def _normalised(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is None or self.bias is None:
            return torch.addcmul(-mean * scale, x, scale)
        scale = scale * self.weight
        return torch.addcmul(self.bias - mean * scale, x, scale)
