"""Tokens of rows in another layout, piece by piece between gaps."""

from __future__ import annotations

import numpy as np
import pytest

from streamenc.bulk.readback.rowlayout import RowLayout
from streamenc.errors import InputError, UsageError
from tests.support.tokensets import BOOKS, ENTRIES, codes_of, facts, row_of

LAYOUTS = ("books", "flat", "delay", "delay:0,2,2")
NUMBER = 4  # a row of 6 frames


@pytest.mark.parametrize("gaps", [(), (1, 4), (3,)])
@pytest.mark.parametrize("there", LAYOUTS)
@pytest.mark.parametrize("wanted", LAYOUTS)
def test_any_to_any(there: str, wanted: str, gaps: tuple[int, ...]) -> None:
    assert codes_of(NUMBER).shape == (BOOKS, 6)
    came, goal = (row_of(NUMBER, layout, gaps).tokens[0] for layout in (there, wanted))
    layout = RowLayout(facts(there), there, wanted)
    for data in (came.data, *came.data) if there == "flat" else (came.data,):
        made, found = layout.change(data, list(came.gaps))
        assert made.dtype == goal.data.dtype and tuple(found) == goal.gaps
        if there != wanted:
            goal_data = goal.data[0] if wanted == "flat" else goal.data
            assert made.shape == goal_data.shape and (made == goal_data).all()


@pytest.mark.parametrize("there", LAYOUTS)
def test_nothing_stays_nothing(there: str) -> None:
    nothing = np.zeros((facts(there).rows, 0), np.uint16)
    for wanted in LAYOUTS:
        made, gaps = RowLayout(facts(there), there, wanted).change(nothing, [])
        flat = wanted == "flat" != there
        assert made.shape == ((0,) if flat else (facts(wanted).rows, 0)) and gaps == []


def test_features_have_no_layout() -> None:
    features = np.zeros((80, 5), np.float32)
    model = facts(kind="features", codebooks=0, codebook_size=0)
    made, gaps = RowLayout(model, "books", "flat").change(features, [2])
    assert made is features and gaps == [2]


def test_tokens_of_another_layout() -> None:
    codes = codes_of(NUMBER)
    with pytest.raises(InputError):
        RowLayout(facts("flat"), "flat", "books").change(codes, [])
    with pytest.raises(InputError):
        RowLayout(facts("delay"), "delay", "books").change(codes, [])
    tokens = row_of(NUMBER, "delay").tokens[0].data
    with pytest.raises(InputError):
        RowLayout(facts("delay"), "delay", "books").change(tokens[:, :-1] % ENTRIES, [])
    with pytest.raises(UsageError):
        RowLayout(facts(), "books", "delay:0,1")
