"""Signal: what goes into a model and comes out of it, a tensor or codes with a volume.

Whoever passes signals on uses what is here, and asks of none which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from streamenc.errors import InputError
from streamenc.spec import ScaledCodes


class Scaled(NamedTuple):
    """Codes with the factor that their decoded waveform is multiplied by.

    Attributes:
        codes: (batch, codebooks, frames) int64.
        scale: (batch, 1, frames): the same for all frames of a segment.
    """

    codes: Tensor
    scale: Tensor


Signal: TypeAlias = "Tensor | Scaled"


def is_signal(value: Any) -> TypeGuard[Signal]:
    return isinstance(value, Tensor | Scaled)


def as_signal(value: Any) -> Signal:
    """A signal as it is, anything else as a copy. Raises InputError for what is no array."""
    if is_signal(value):
        return value
    try:
        if isinstance(value, ScaledCodes):
            return Scaled(*map(tensor_of, value))
        return tensor_of(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"got a {type(value).__name__}; wanted a tensor, a numpy array or a list of numbers: "
            f"{error}"
        ) from error


def tensor_of(value: Any) -> Tensor:
    """A tensor of its own for numpy's arrays of all kinds, and for lists.

    They may be read-only, run backwards, or have the bytes of another machine, which torch takes
    badly. Raises TypeError, ValueError for what holds no numbers.
    """
    array = np.array(value, order="C")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def values(signal: Signal) -> Tensor:
    """The tensor itself: samples, features or codes, (batch, channels or codebooks, time, ...)."""
    return signal.codes if isinstance(signal, Scaled) else signal


def scale(signal: Signal) -> Tensor | None:
    """The factors that come with codes, (batch, 1, frames); None where there are none."""
    return signal.scale if isinstance(signal, Scaled) else None


def items(signal: Signal) -> int:
    """Items along time."""
    return values(signal).shape[2]


def row(signal: Signal, index: int) -> Signal:
    """One of a batch, as a batch of one that shares its memory."""
    return _each(lambda part: part[index : index + 1], signal)


def cut(signal: Signal, start: int, stop: int) -> Signal:
    """Items `start` to `stop`, sharing their memory."""
    return _each(lambda part: part[:, :, start:stop], signal)


def with_values(signal: Signal, tensor: Tensor) -> Signal:
    """Other codes with the same factors; of a tensor, the other one."""
    return Scaled(tensor, signal.scale) if isinstance(signal, Scaled) else tensor


def first_books(signal: Signal, count: int | None) -> Signal:
    """Codes of the first `count` codebooks, sharing their memory; None for all."""
    return with_values(signal, values(signal)[:, :count])


def clone(signal: Signal) -> Signal:
    """A copy in memory of its own."""
    return _each(Tensor.clone, signal)


def cat(parts: Sequence[Signal]) -> Signal:
    """One or several signals of the same kind, one after the other in time."""
    if len(parts) == 1:
        return parts[0]
    whole = torch.cat([values(part) for part in parts], dim=2)
    scales = [part.scale for part in parts if isinstance(part, Scaled)]
    return Scaled(whole, torch.cat(scales, dim=2)) if scales else whole


def _each(fn: Callable[[Tensor], Tensor], signal: Signal) -> Signal:
    return Scaled(*map(fn, signal)) if isinstance(signal, Scaled) else fn(signal)
