"""Outputs: what sessions give, as numpy arrays, and without torch.

An output is an array (1, channels or codebooks, items, ...), or ScaledCodes of two of them. Codes
have the type that recordings have for them, the smallest that holds all entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from streamenc.spec import ScaledCodes

Array: TypeAlias = NDArray[Any]
Output: TypeAlias = "Array | ScaledCodes"

# Rows of a batch that are handed out share blocks of this size, in bytes, so that who keeps one
# keeps no more than that of the others'; a copy of each would take the longest of all.
BLOCK_BYTES = 4096


def is_output(value: Any) -> TypeGuard[Output]:
    return isinstance(value, np.ndarray | ScaledCodes)


def values(output: Output) -> Array:
    """The array itself: samples, features or codes."""
    return output.codes if isinstance(output, ScaledCodes) else output


def items(output: Output) -> int:
    """Items along time."""
    return int(values(output).shape[2])


def first_books(output: Output, count: int | None) -> Output:
    """Codes of the first `count` codebooks, sharing their memory; None for all."""
    if isinstance(output, ScaledCodes):
        return ScaledCodes(output.codes[:, :count], output.scale)
    return output[:, :count]


def cat(parts: Sequence[Output]) -> Output:
    """One or several outputs of one session, one after the other in time."""
    if len(parts) == 1:
        return parts[0]
    whole = np.concatenate([values(part) for part in parts], axis=2)
    scales = [part.scale for part in parts if isinstance(part, ScaledCodes)]
    return ScaledCodes(whole, np.concatenate(scales, axis=2)) if scales else whole


def one_after_the_other(parts: Sequence[Output]) -> Output:
    """Several outputs of one session, of the fewest codebooks that any of them has."""
    some = [part for part in parts if items(part)]
    if not some:
        return parts[-1]
    if len(some) == 1:
        return some[0]
    fewest = min(values(part).shape[1] for part in some)
    return cat([first_books(part, fewest) for part in some])


def first(output: Output, count: int) -> Output:
    """The first rows of a batch."""
    if isinstance(output, ScaledCodes):
        return ScaledCodes(output.codes[:count], output.scale[:count])
    return output[:count]


def rows(output: Output) -> list[Output]:
    """Each of a batch as a batch of one, in memory that nobody writes."""
    if isinstance(output, ScaledCodes):
        return list(map(ScaledCodes, _rows(output.codes), _rows(output.scale)))
    return list(_rows(output))


def _rows(array: Array) -> list[Array]:
    count = len(array)
    in_block = max(1, BLOCK_BYTES * count // max(1, array.nbytes))
    split: list[Array] = []
    for start in range(0, count, in_block):
        split.extend(array[start : start + in_block, None].copy())
    return split
