from __future__ import annotations

import pytest

from streamenc.errors import UsageError
from streamenc.io import options


def test_strings_and_values_are_taken_alike() -> None:
    assert options.number("n", "1.5", 0, 2) == options.number("n", 1.5, 0, 2) == 1.5
    assert options.integer("n", "3", 0, 9) == options.integer("n", 3, 0, 9) == 3
    assert options.choice("n", "a", {"a": 1, "b": 2}) == "a"
    assert all(options.flag("n", value) for value in (True, "true", "Yes", "on", "1", "", 1))
    assert not any(options.flag("n", value) for value in (False, "false", "No", "off", "0", 0))


@pytest.mark.parametrize("value", ["", "x", "3", "-1", "nan", "inf", None, []])
def test_numbers_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'n' must be a number from 0 to 2"):
        options.number("n", value, 0, 2)


@pytest.mark.parametrize("value", ["", "1.5", 1.5, "10", -1, None])
def test_whole_numbers_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'n' must be a whole number from 0 to 9"):
        options.integer("n", value, 0, 9)


def test_other_words_are_refused() -> None:
    with pytest.raises(UsageError, match="'n' must be true or false; got 'maybe'"):
        options.flag("n", "maybe")
    with pytest.raises(UsageError, match="'n' must be one of a, b; got 'c'"):
        options.choice("n", "c", ("a", "b"))
