"""Nested lists of Arrow as numpy arrays, without a Python object for each number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from streamenc.errors import MediaError


def arrays_of(column: Any, axes: int) -> list[np.ndarray[Any, Any]]:
    """Of each row of lists within lists, an array; of nothing, one whose axes are 0.

    Args:
        column: An Arrow array of lists of numbers.
        axes: How many an array of it has.

    Raises MediaError where lists within one row differ in length, or the column is none of these.
    """
    levels, values = [], column
    for _ in range(axes):
        levels.append(_bounds(values))
        values = values.values
    if values.null_count or not pa.types.is_primitive(values.type):
        raise MediaError(f"got a column of {column.type}; wanted lists of {axes} axes of numbers")
    flat = values.to_numpy(zero_copy_only=False)
    return [_array(flat, levels, row) for row in range(len(column))]


def _bounds(lists: Any) -> np.ndarray[Any, Any]:
    """Where each list begins in its values, and behind them where the last one ends."""
    kind = lists.type
    if pa.types.is_fixed_size_list(kind):
        first: int = lists.offset
        return np.arange(first, first + len(lists) + 1) * int(kind.list_size)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise MediaError(f"got {kind}; wanted lists of tokens")
    bounds: np.ndarray[Any, Any] = lists.offsets.to_numpy()
    return bounds


def _array(
    flat: np.ndarray[Any, Any], levels: list[np.ndarray[Any, Any]], row: int
) -> np.ndarray[Any, Any]:
    shape, first, behind = [], row, row + 1
    for bounds in levels:
        lengths = np.diff(bounds[first : behind + 1])
        if len(lengths) and (lengths != lengths[0]).any():
            raise MediaError(f"lists within row {row} have different lengths")
        shape.append(int(lengths[0]) if len(lengths) else 0)
        first, behind = int(bounds[first]), int(bounds[behind])
    return flat[first:behind].reshape(shape)
