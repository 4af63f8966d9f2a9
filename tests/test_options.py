from __future__ import annotations

from fractions import Fraction

import pytest

from streamenc import options
from streamenc.errors import UsageError


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


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        ("25", Fraction(25)),
        (12.5, Fraction(25, 2)),
        ("29.97", Fraction(2997, 100)),
        ("30000/1001", Fraction(30000, 1001)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
    ],
)
def test_rates_are_exact(value: object, rate: Fraction) -> None:
    assert options.rate("fps", value, 1, 1000) == rate


@pytest.mark.parametrize("value", ["", "x", "0", "1001", "1/0", "nan", float("inf"), None, -5])
def test_rates_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'fps' must be a rate from 1 to 1000 per second"):
        options.rate("fps", value, 1, 1000)


def test_sizes_are_width_and_height() -> None:
    assert options.size("size", "1280x720") == (1280, 720)
    assert options.size("size", "64X48") == (64, 48)


@pytest.mark.parametrize("value", ["", "640", "640x", "x480", "0x480", "640x-1", "1x99999", None])
def test_sizes_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'size' must be WIDTHxHEIGHT in pixels"):
        options.size("size", value)
