"""What models are tested on: random signals by their spec, cut and put together."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal, cut, items, values, with_values
from streamenc.spec import ImageSize


class MakeSignal(Protocol):
    """Makes what a model takes: of so many items, always the same for the same seed."""

    def __call__(self, model: Model, items: int, *, batch: int = 1, seed: int = 0) -> Signal: ...


def random_signal(model: Model, items: int, *, batch: int = 1, seed: int = 0) -> Signal:
    """Noise, or random codes, for `model` to take: (batch, channels, items), of images with their
    height and width behind it; of texts, tokens of random ones."""
    generator = torch.Generator().manual_seed(seed)
    spec, like = model.spec, model.like
    size: tuple[int, ...] = ()
    if spec.input.axes:
        image = spec.input.image or ImageSize()
        size = image.size or (2 * image.unit, image.unit)
    if spec.input.kind == "text":
        return model.signal([_texts(items, seed + lane) for lane in range(batch)])
    shape = (batch, spec.input.channels, items, *size)
    if spec.input.kind != "codes":
        noise = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        return noise.to(like.device, like.dtype)
    codes = torch.randint(spec.codebook_size, shape, generator=generator).to(like.device)
    if not spec.scaled:
        return codes
    segments = torch.rand((batch, 1, items // spec.hop + 2), generator=generator) + 0.1
    scale = segments.repeat_interleave(spec.hop, dim=-1)[..., :items]
    return Scaled(codes, scale.to(like.device, like.dtype))


def _texts(count: int, seed: int) -> list[str]:
    """Of any length, the empty one among them."""
    chance = random.Random(seed)
    words = ("".join(chance.choices("abcdefgh", k=chance.randint(1, 5))) for _ in iter(int, 1))
    return [" ".join(next(words) for _ in range(chance.randint(0, 7))) for _ in range(count)]


def replaced(x: Signal, other: Signal, start: int, stop: int) -> Signal:
    """`x` with the items `start` to `stop` of `other`; scales stay."""
    mixed = values(x).clone()
    mixed[:, :, start:stop] = values(other)[:, :, start:stop]
    return with_values(x, mixed)


def pieces(x: Signal, counts: Sequence[int]) -> Iterator[Signal]:
    """`x` in chunks of so many items, the counts over and over; at least one chunk."""
    start, length = 0, items(x)
    for count in cycle(counts):
        yield cut(x, start, start + count)
        start += count
        if start >= length:
            return


def joined(outputs: Sequence[Signal]) -> Tensor:
    """Outputs one after the other, without their scales; those of no items have as many channels as
    the spec says."""
    tensors = [values(y) for y in outputs]
    some = [y for y in tensors if y.shape[2]]
    return torch.cat(some, dim=2) if some else tensors[-1]


def recording(
    model: Model, latents: list[Tensor], after: Callable[[Tensor, int | None], Signal]
) -> Model:
    """The same model with another stateless end; notes what comes to it."""
    other = copy.copy(model)

    def noted(y: Tensor, codebooks: int | None = None) -> Signal:
        latents.append(y)
        return after(y, codebooks)

    other.after = noted  # type: ignore[method-assign]
    return other


def raw(model: Model) -> Model:
    """The same model without its stateless end: streams give latents."""
    other = copy.copy(model)
    other.after = lambda y, codebooks=None: y  # type: ignore[method-assign]
    return other
