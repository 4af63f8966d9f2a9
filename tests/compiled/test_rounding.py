"""Weights in int16: what becomes of them, which ones do not, and that torch has the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import streamenc

pytest.importorskip("numba", reason="the compiled backend needs numba")

from streamenc.compiled.weights import (
    LARGEST,
    Arena,
    Array,
    Panels,
    Weights,
    in_int16,
    pack,
)
from streamenc_kernels.compiled.instruction import PANEL, WeightType

# Half a step, and what dividing by the step in float32 is off by.
HALF_STEP = 0.5 + LARGEST * 2.0**-24


def matrix(outputs: int, inside: int, seed: int = 0) -> Array:
    made = np.random.default_rng(seed).standard_normal((outputs, inside), dtype=np.float32)
    return np.asarray(made)


def same(weight: Tensor) -> Tensor:
    return weight


def as_stored(panels: Panels, outputs: int) -> Array:
    """The matrix that products compute with."""
    kinds = panels.table[:, 1]
    columns = np.concatenate([kept.T for kept in panels.kept]).astype(np.float64)
    assert not columns[outputs:].any()
    assert [kept.dtype == np.int16 for kept in panels.kept] == [
        kind == WeightType.INT16 for kind in kinds
    ]
    assert [kept.ctypes.data for kept in panels.kept] == panels.table[:, 0].tolist()
    assert all(kept.ctypes.data % 64 == 0 for kept in panels.kept)
    scale = np.ones(outputs) if panels.scale is None else panels.scale.astype(np.float64)
    return columns[:outputs] * scale[:, None]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(
    outputs=st.integers(1, 150),
    inside=st.integers(1, 90),
    seed=st.integers(0, 1 << 20),
    sizes=st.tuples(st.integers(-126, 120), st.integers(0, 20)),
)
def test_each_row_is_off_by_half_a_step_of_its_own(outputs, inside, seed, sizes):
    random = np.random.default_rng(seed)
    exponents = np.clip(sizes[0] + random.integers(-sizes[1], sizes[1] + 1, outputs), -140, 120)
    x = (matrix(outputs, inside, seed) * 2.0 ** exponents[:, None]).astype(np.float32)
    x[random.integers(0, outputs)] = 0
    numbers, scale, fits = in_int16(x)
    assert (
        np.abs(numbers).max() <= LARGEST
        and numbers.dtype == np.int16
        and scale.dtype == np.float32
        and (scale > 0).all()
    )
    error = np.abs(numbers * scale.astype(np.float64)[:, None] - x)
    assert (error <= HALF_STEP * scale[:, None]).all()
    # Rows whose largest number is one of float32 take the whole range.
    whole = np.abs(x).max(axis=1) > 2.0**-110
    assert (np.abs(numbers).max(axis=1)[whole] == LARGEST).all()
    # Packed, those that do not fit are as they were, and so is what shares their panel.
    stored = as_stored(pack(x, True, Arena()), outputs)
    for start in range(0, outputs, PANEL):
        rows = slice(start, start + PANEL)
        if fits[rows].all():
            assert (np.abs(stored[rows] - x[rows]) <= HALF_STEP * scale[rows, None]).all()
        else:
            assert np.array_equal(stored[rows], x[rows])
    assert np.array_equal(as_stored(pack(x, False, Arena()), outputs), x)


@pytest.mark.parametrize("inside", [24, 64, 500])
def test_a_row_with_a_number_far_from_the_rest_stays_in_float32(inside):
    x = matrix(5, inside)
    x[1, 3] = 1000
    x[2, 3] = 5  # not so far
    x[3] = 0
    x[4] = 1e-42 * np.arange(inside)  # too small for a scale
    assert in_int16(x).fits.tolist() == [True, False, True, True, False]


def test_a_row_of_few_numbers_beside_zeros_fits():
    x = matrix(3, 200)
    x[0, 10:] = 0
    x[1, 1:] = 0
    x[2, ::2] = 0
    assert in_int16(x).fits.all()


@pytest.mark.parametrize("outputs", [1, 63, 64, 65, 130, 200])
def test_panels_of_both_kinds(outputs):
    x = matrix(outputs, 33)
    x[outputs // 2, 5] = 1000
    panels = pack(x, True, Arena())
    at = outputs // 2 // PANEL
    kinds = [WeightType.INT16] * len(panels.table)
    kinds[at] = WeightType.FLOAT32
    assert panels.table[:, 1].tolist() == kinds
    stored = as_stored(panels, outputs)
    assert np.abs(stored - x).max() <= 1e-4
    rows = slice(at * PANEL, (at + 1) * PANEL)
    assert np.array_equal(stored[rows], x[rows])
    assert panels.scale is not None and panels.scale.shape == (outputs,)


def turned(weight: Tensor) -> Tensor:
    """(out, in, kernel) by taps."""
    return weight.transpose(1, 2).flatten(1)


@pytest.mark.parametrize(
    ("shape", "arrange"), [((70, 24), same), ((65, 9, 4), turned), ((3, 50), same)]
)
def test_torch_computes_with_the_same_numbers(
    shape: tuple[int, ...], arrange: Callable[[Tensor], Tensor]
):
    weight = torch.nn.Parameter(torch.from_numpy(matrix(shape[0], int(np.prod(shape[1:])))))
    weight = torch.nn.Parameter(weight.detach().view(shape))
    with torch.no_grad():
        weight.view(shape[0], -1)[2, 5] = 1000.0  # its panel stays, and so does it
    before = weight.detach().clone()
    weights = Weights("int16")
    panels = weights.panels(weight, arrange, "way", short=True)
    stored = as_stored(panels, shape[0])
    now = arrange(weight.detach()).double().numpy()
    # The last bit is where torch has a float32 for number * scale.
    assert np.abs(stored - now).max() <= 2.0**-23 * np.abs(now).max()
    assert not torch.equal(weight, before) and torch.equal(weight[2], before[2])
    assert weights.panels(weight, arrange, "way", short=True) is panels
    # The same numbers again where another product wants them in float32.
    plain = weights.panels(weight, arrange, "way", short=False)
    assert plain.scale is None and np.array_equal(as_stored(plain, shape[0]), now)


def test_float32_leaves_weights_as_they_are():
    weight = torch.nn.Parameter(torch.from_numpy(matrix(70, 24)))
    before = weight.detach().clone()
    panels = Weights("float32").panels(weight, same, "way", short=True)
    assert torch.equal(weight, before) and panels.scale is None
    assert np.array_equal(as_stored(panels, 70), before.numpy())


def test_weights_that_were_int8_are_not_rounded_again():
    """Those that nano stores as int8 with a scale for each row, and its codebooks."""
    codec = streamenc.load("nano", backend="torch")
    checked = 0
    for part in (codec.encoder, codec.decoder):
        for name, weight in part.state_dict().items():
            if weight.ndim < 2 or not name.endswith(("weight", "codebooks")):
                continue
            if "codebooks" in name:
                rows = weight.flatten(0, 1)
            else:
                rows = weight.flatten(1)
            x = rows.numpy()
            stored = as_stored(pack(x, True, Arena()), len(x))
            unit = np.spacing(np.abs(x)).astype(np.float64)
            assert (np.abs(stored - x) <= unit).all(), name
            assert (pack(x, True, Arena()).table[:, 1] == WeightType.INT16).all(), name
            checked += 1
    assert checked > 20
