"""Lists of Arrow as arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from streamenc.bulk.readback.columnarrays import arrays_of
from streamenc.errors import MediaError

ROWS = [[[1, 2, 3], [4, 5, 6]], [[], []], [[7], [8]], [[9, 9], [0, 1]]]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.list_(pa.uint16())), pa.large_list(pa.list_(pa.int8()))]
)
@pytest.mark.parametrize("first", [0, 1, 3])
def test_rows_of_any_lengths_from_anywhere(kind: pa.DataType, first: int) -> None:
    column = pa.array(ROWS, kind).slice(first)
    made = arrays_of(column, 2)
    for array, row in zip(made, ROWS[first:], strict=True):
        assert array.tolist() == row and array.shape == (2, len(row[0]))
    assert made[0].dtype == kind.value_type.value_type.to_pandas_dtype()


def test_lists_of_a_fixed_size() -> None:
    column = pa.array(ROWS, pa.list_(pa.list_(pa.uint16()), 2)).slice(1, 3)
    assert [array.tolist() for array in arrays_of(column, 2)] == ROWS[1:]


def test_grids() -> None:
    grid = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    column = pa.array([grid.tolist(), grid[:, :1].tolist(), grid[:, :0].tolist()])
    one, other, nothing = arrays_of(column, 4)
    assert (one == grid).all() and (other == grid[:, :1]).all() and nothing.shape == (2, 0, 0, 0)


@pytest.mark.parametrize(
    ("rows", "axes"), [([[[1, 2], [3]]], 2), ([[1, 2]], 2), ([[[[1]]]], 2), ([[[1, None]]], 2)]
)
def test_what_is_no_array(rows: list[object], axes: int) -> None:
    with pytest.raises(MediaError):
        arrays_of(pa.array(rows), axes)
