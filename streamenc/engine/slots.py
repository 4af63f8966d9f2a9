"""Lanes: many streams through one model in one batched step.

The lanes in use are dense: a stream that joins takes the next one, and when one leaves, the last
lane moves into the hole. So a step always runs on the first n lanes of one allocation, as views.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.errors import InputError, UsageError
from streamenc.models.base import Model, Signal
from streamenc.state import State


class Lanes:
    """Up to `capacity` streams through `model`, each known by a ticket while it is in.

    A stream joins with its first `lead` items and leaves with its tail; in between it takes one hop
    at a time, or idles. Inputs are tensors after `model.enter` of batch 1; outputs come from
    `model.leave`.
    """

    def __init__(self, model: Model, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self._pool: State = None
        self._tickets: list[int] = []
        self._next = 0
        self._channels: int | None = None

    def __len__(self) -> int:
        return len(self._tickets)

    def join(self, first: Tensor, codebooks: int | None = None) -> tuple[int, Signal]:
        """Starts a stream with its first `spec.lead` items; gives its ticket and first output.

        Raises UsageError where all lanes are taken, InputError for another length.
        """
        if len(self) == self.capacity:
            raise UsageError(f"all {self.capacity} lanes are taken; wait until a stream leaves")
        self._check(first, self.model.spec.lead)
        with torch.inference_mode():
            y, state = self.model.step(first, None)
            self._channels = first.shape[1]
            return self._enter(state), self.model.leave(y, codebooks)

    def _enter(self, state: State) -> int:
        if self._pool is None:
            self._pool = states.allocate(state, self.capacity)
        states.put_lane(self._pool, len(self), state)
        self._tickets.append(self._next)
        self._next += 1
        return self._tickets[-1]

    def step(self, inputs: Mapping[int, Tensor], codebooks: int | None = None) -> dict[int, Signal]:
        """One hop for each stream named in `inputs`; all others idle, untouched to the bit."""
        if not inputs:
            return {}
        for ticket, x in inputs.items():
            self._index(ticket)
            self._check(x, self.model.spec.hop)
        like = next(iter(inputs.values()))
        with torch.inference_mode():
            batch = torch.zeros((len(self), *like.shape[1:]), dtype=like.dtype, device=like.device)
            active = torch.zeros(len(self), dtype=torch.bool, device=like.device)
            for ticket, x in inputs.items():
                index = self._index(ticket)
                batch[index] = x[0]
                active[index] = True
            before = states.first_lanes(self._pool, len(self))
            y, after = self.model.step(batch, before)
            states.commit(before, after, active)
            return {
                ticket: self.model.leave(y[index : index + 1], codebooks)
                for ticket, index in ((t, self._index(t)) for t in inputs)
            }

    def leave(
        self, ticket: int, tail: Tensor | None = None, codebooks: int | None = None
    ) -> Signal:
        """Ends a stream with its tail, of any length, and frees its lane; gives the last output."""
        if tail is None:
            tail = self.model.like.new_zeros(1, self._channels or 0, 0)
        self._check(tail, tail.shape[-1])
        state = self.take(ticket)
        with torch.inference_mode():
            y, _ = self.model.step(tail, state, end=True)
            return self.model.leave(y, codebooks)

    def take(self, ticket: int) -> State:
        """Takes a stream out without ending it: its state, of batch 1."""
        index = self._index(ticket)
        with torch.inference_mode():
            state = states.lane(self._pool, index)
            last = len(self) - 1
            if index != last:
                states.put_lane(self._pool, index, states.lane(self._pool, last))
        self._tickets[index] = self._tickets[last]
        self._tickets.pop()
        return state

    def _index(self, ticket: int) -> int:
        try:
            return self._tickets.index(ticket)
        except ValueError:
            raise UsageError(f"no stream has ticket {ticket}: it left, or never joined") from None

    def _check(self, x: Tensor, length: int) -> None:
        fits = x.ndim == 3 and x.shape[0] == 1 and x.shape[-1] == length
        if not fits or self._channels not in (None, x.shape[1]):
            raise InputError(
                f"got shape {tuple(x.shape)}; {self.model.spec.name} wants "
                f"(1, {self._channels or 'channels'}, {length}) here"
            )
