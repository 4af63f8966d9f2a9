"""Streamed: a layer with explicit state; Chain and Residual, which put layers together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Self, TypeAlias, final

import torch
from torch import Tensor, nn

from streamenc.errors import CannotLower
from streamenc.spec import Steps
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

# The first input item that some outputs depend on, or None where all the past counts, and the last.
Span: TypeAlias = "tuple[int | None, int]"


class Streamed(nn.Module):
    """A layer that computes a stream piece by piece.

    `step(x, state)` gives the output for `x`, the next piece, and the state to go on from.
    `state=None` means that the stream starts with `x`; `end=True` that it ends with it. In between,
    every layer takes lengths that are a multiple of its stride, so state shapes never change; the
    last piece may have any length.

    `forward(x)` is the stream of one piece that is both the first and the last. Nobody overrides
    it: offline and streaming are one code path.
    """

    @property
    def steps(self) -> Steps:
        """How many positions the first step and the later ones take and give."""
        raise TypeError(f"{type(self).__name__} does not define steps")

    def reach(self, first: int, last: int) -> Span:
        """Which input positions the outputs `first` to `last` depend on, of a stream that goes on
        behind them: the first, from 0 up, or None where all the past counts; and the last.

        Exact away from the stream's start; there 0 may stand for a position that a dilated kernel
        leaves out."""
        raise TypeError(f"{type(self).__name__} does not define reach")

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        """x: (batch, channels, time), time at least 1."""
        raise TypeError(f"{type(self).__name__} does not define step")

    def pages(self, state: State) -> Iterator[Tensor]:
        """Those leaves of a state of this layer that `step` also takes as `Paged`, in mid-stream:
        large ones, of which it reads and writes some lanes of many in place. None by default."""
        return iter(())

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        """The instructions of `step` in mid-stream, for the compiled backend.

        Raises:
            CannotLower: Where there are none.

        Args:
            x: What comes in: its rows are time.
            state: As a step in mid-stream gets it; its tensors name those of any stream.
        """
        raise CannotLower(f"{type(self).__name__} has no instructions yet")

    @final  # type: ignore[misc]  # torch declares forward as an attribute
    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, None, end=True)[0]


class Prepared(nn.Module):
    """A layer that computes something from its weights once, for speed."""

    def prepare(self) -> None:
        """Called once the weights are in place and have their dtype and device."""


class Exportable(nn.Module):
    """A module whose exported step takes another path than torch does: one for any number of lanes
    and any runtime."""

    _exported: bool = False

    def for_export(self) -> None:
        """Called once, before it is traced, on a copy that is only exported. The copy's tensors are
        the original's: it may drop them, but not write to them."""
        self._exported = True


class Exact(nn.Module):
    """A layer whose own numbers stay in float32 at least, whatever the model is converted to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def exact(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            lost = moved.is_floating_point() and torch.finfo(moved.dtype).bits < 32
            return tensor.to(moved.device) if lost else moved

        super()._apply(exact, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        return self


class Pointwise(nn.Module):
    """A layer that sees each position of (batch, channels, time) alone: it has no state."""

    def lower(self, plan: Plan, x: AnyValue) -> AnyValue:
        """What `Streamed.lower` is to the layers with state."""
        raise CannotLower(f"{type(self).__name__} has no instructions")


def steps_through(layers: Iterable[nn.Module]) -> Steps:
    """Of layers one after the other; modules that are not Streamed see each position alone."""
    steps = Steps()
    for layer in layers:
        if isinstance(layer, Streamed):
            steps = steps.then(layer.steps)
    return steps


def reach_through(layers: Sequence[nn.Module], first: int, last: int) -> Span:
    """Which inputs of the first of the layers outputs of the last one depend on."""
    start: int | None = first
    for layer in reversed(layers):
        if isinstance(layer, Streamed):
            here, last = layer.reach(start or 0, last)
            start = None if start is None else here
    return start, last


class Chain(Streamed):
    """Layers one after the other. Modules that are not Streamed see each position alone (ELU)."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    @property
    def steps(self) -> Steps:
        return steps_through(self.layers)

    def reach(self, first: int, last: int) -> Span:
        return reach_through(list(self.layers), first, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        streamed = sum(isinstance(layer, Streamed) for layer in self.layers)
        states = (None,) * streamed if state is None else state
        assert isinstance(states, tuple) and len(states) == streamed
        following: list[State] = []
        for layer in self.layers:
            if isinstance(layer, Streamed):
                x, new = layer.step(x, states[len(following)], end=end)
                following.append(new)
            else:
                x = layer(x)
        return x, tuple(following)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        assert isinstance(state, tuple)
        parts = iter(state)
        for layer in self.layers:
            x = plan.through(layer, x, next(parts) if isinstance(layer, Streamed) else None)
        return x

    def pages(self, state: State) -> Iterator[Tensor]:
        assert isinstance(state, tuple)
        streamed = [layer for layer in self.layers if isinstance(layer, Streamed)]
        for layer, part in zip(streamed, state, strict=True):
            yield from layer.pages(part)


class Residual(Streamed):
    """block(x) + shortcut(x), both of the same length; the identity where there is no shortcut.

    A block that looks ahead gives its outputs later than the shortcut, whose own wait for them.

    State: the block's, the shortcut's, and the shortcut's outputs that wait, (batch, channels,
    look-ahead); None where none do.
    """

    def __init__(self, block: Streamed, shortcut: Streamed | None = None) -> None:
        super().__init__()
        self.block = block
        self.shortcut = shortcut

    @property
    def steps(self) -> Steps:
        return self.block.steps.beside(Steps() if self.shortcut is None else self.shortcut.steps)

    def reach(self, first: int, last: int) -> Span:
        start, stop = self.block.reach(first, last)
        if self.shortcut is not None:
            first_short, last = self.shortcut.reach(first, last)
        else:
            first_short = first
        if start is None or first_short is None:
            return None, max(stop, last)
        return min(start, first_short), max(stop, last)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        before, short_before, waited = state if isinstance(state, tuple) else (None, None, None)
        y, after = self.block.step(x, before, end=end)
        short, short_after = x, None
        if self.shortcut is not None:
            short, short_after = self.shortcut.step(x, short_before, end=end)
        if isinstance(waited, Tensor):
            short = torch.cat((waited, short), dim=-1)
        ready = y.shape[-1]
        assert short.shape[-1] == ready if end else short.shape[-1] >= ready
        waiting = short[..., ready:].contiguous() if short.shape[-1] > ready else None
        return short[..., :ready] + y, (after, short_after, waiting)

    def pages(self, state: State) -> Iterator[Tensor]:
        assert isinstance(state, tuple)
        before, short_before, _ = state
        yield from self.block.pages(before)
        if self.shortcut is not None:
            yield from self.shortcut.pages(short_before)
