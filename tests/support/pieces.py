"""A stream in random pieces."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from streamenc.stream import Stream
from tests.support.zoo import cut


def pushed(stream: Stream, x: Tensor, seed: int) -> Tensor:
    """What the whole of x gives, in pieces of up to three hops, and the end."""
    rng, parts, start = random.Random(seed), [], 0
    while start < x.shape[-1]:
        stop = start + rng.randint(1, 3 * stream.model.spec.hop)
        parts.append(stream.push(cut(x, start, stop)))
        start = stop
    parts.append(stream.flush())
    return torch.cat([part for part in parts if part.shape[-1]], dim=-1)
