"""Subject: a model under test, what it is tested on, and the sentence that says what fails."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from streamenc.errors import ContractError
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.stream import Stream
from streamenc.testing.comparison import difference
from streamenc.testing.signals import MakeSignal, joined, pieces, raw

# Steps of more items than this are long: a few of them do, as their memory is counted in steps.
LONG = 500


@dataclass(frozen=True)
class Subject:
    """A model under test.

    Attributes:
        model: As its author gave it, in the dtype that is tested.
        make: Makes signals for it.
        tolerance: Relative error that its promise of equality allows in this dtype.
        examples: Random cases of each check that has some.
        seed: Of these, and of signals.
    """

    model: Model
    make: MakeSignal
    tolerance: float
    examples: int
    seed: int

    @property
    def name(self) -> str:
        spec = self.model.spec
        return f"{spec.name} ({spec.input.kind} to {spec.output.kind})"

    @property
    def dtype(self) -> str:
        return str(self.model.like.dtype).removeprefix("torch.")

    @property
    def long(self) -> bool:
        return self.model.spec.hop > LONG or self.model.spec.hop_out > LONG

    @property
    def most_hops(self) -> int:
        """Hops of the longest random signals; those far past every window have more."""
        return 5 if self.long else 30

    def fail(self, what: str) -> NoReturn:
        raise ContractError(f"{self.name}: {what}")

    def same(self, ours: Tensor, theirs: Tensor, rel: float, what: str, promise: str = "") -> None:
        """Fails with "`what` output 12 differs ...; `promise`" where they differ by more."""
        if found := difference(ours, theirs, rel):
            self.fail(f"{what} {found}; {promise or 'they must be equal to the bit'}")

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """A model's own exception gets a note of what was done to it."""
        try:
            yield
        except ContractError:
            raise
        except (
            RuntimeError,
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            AssertionError,
        ) as error:
            error.add_note(f"{self.name}: while checking {what}")
            raise

    def items_for(self, hops: int, rest: float) -> int:
        """A length of some hops beyond what the first step takes, or within it, and a part of a
        hop; no more than the model takes."""
        spec = self.model.spec
        items = max(0, spec.lead + (hops - 2) * spec.hop) + int(rest * spec.hop)
        return min(items, spec.limit) if spec.limit else items

    def signal(self, items: int, *, batch: int = 1, seed: int = 0) -> Signal:
        return self.make(self.model, items, batch=batch, seed=self.seed + seed)

    def offline(self, x: Signal) -> Tensor:
        """What the model makes of the whole signal at once, before its stateless end."""
        with torch.inference_mode():
            whole: Tensor = self.model(self.model.before(x))
            return whole

    def latents(self, x: Signal, counts: Sequence[int], *, batch: int = 1, hops: int = 1) -> Tensor:
        """What a stream gives before the stateless end, with its end."""
        return run(raw(self.model), x, counts, batch=batch, hops=hops)

    def chances(self, check: str) -> Iterator[random.Random]:
        """A source of random choices for each example of a check."""
        for example in range(self.examples):
            yield random.Random(f"{self.seed} {check} {example}")


def run(model: Model, x: Signal, counts: Sequence[int], *, batch: int = 1, hops: int = 1) -> Tensor:
    """A stream over `x` in chunks of `counts` items, and its end."""
    stream = Stream(model, batch=batch, hops=hops)
    outputs = [stream.push(piece) for piece in pieces(x, counts)]
    return joined([*outputs, stream.flush()])


def fraction(chance: random.Random) -> float:
    """From 0 to 1, both of which come often."""
    return chance.choice([0.0, 1.0, *(chance.random() for _ in range(4))])


def chunks(model: Model, items: int, chance: random.Random) -> list[int]:
    """Sizes of chunks around hops; no more than some hundred chunks in all."""
    hop = model.spec.hop
    few = range(chance.randint(1, 6))
    counts = [max(0, chance.randint(0, 3) * hop + chance.randint(-2, 2)) for _ in few]
    if chance.random() < 0.15 or not any(counts):
        counts = [1]
    if max(counts) * 100 < items:
        counts.append(items // 100)
    return counts


def told(counts: Sequence[int]) -> str:
    """Sizes of chunks, for a sentence."""
    return f"with chunks of {', '.join(map(str, counts))} items"
