from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamenc import options
from streamenc.errors import UsageError


def test_strings_and_values_are_taken_alike() -> None:
    assert options.number("n", "1.5", 0, 2) == options.number("n", 1.5, 0, 2) == 1.5
    assert options.integer("n", "3", 0, 9) == options.integer("n", 3, 0, 9) == 3
    assert options.choice("n", "a", {"a": 1, "b": 2}) == "a"
    assert all(options.flag("n", value) for value in (True, "true", "Yes", "on", "1", "", 1))
    assert not any(options.flag("n", value) for value in (False, "false", "No", "off", "0", 0))


FINITE = st.floats(-1e6, 1e6)
SIDES = st.integers(1, 16_384)


@given(number=FINITE, whole=st.integers(-(10**6), 10**6), flag=st.booleans(), spaces=st.text(" "))
def test_a_number_or_flag_and_its_text_are_one(
    number: float, whole: int, flag: bool, spaces: str
) -> None:
    for value in (number, whole):
        text = f"{spaces}{value}{spaces}"
        assert (
            options.number("n", text, -1e6, 1e6) == options.number("n", value, -1e6, 1e6) == value
        )
    for text in (whole, str(whole), float(whole), str(float(whole)), f"{spaces}{whole}"):
        got = options.integer("n", text, -(10**6), 10**6)
        assert got == whole and type(got) is int
    for text in (flag, str(flag), str(flag).upper(), int(flag), str(int(flag)), f" {flag} "):
        assert options.flag("n", text) is flag


@given(rate=st.one_of(st.floats(1, 1000), st.integers(1, 1000), st.fractions(1, 1000)))
def test_a_rate_and_its_text_are_one(rate: float | Fraction) -> None:
    got = options.rate("fps", rate, 1, 1000)
    assert got == options.rate("fps", str(rate), 1, 1000)
    assert abs(got - Fraction(rate)) <= Fraction(1, 10**6)


@given(height=SIDES, width=SIDES)
def test_a_size_and_its_text_are_one(height: int, width: int) -> None:
    pair = height, width
    assert options.size("size", f"{width}x{height}") == options.size("size", pair) == pair


@pytest.mark.parametrize("value", ["", "x", "3", "-1", "nan", "inf", True, None, []])
def test_numbers_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'n' must be a number from 0 to 2"):
        options.number("n", value, 0, 2)


@pytest.mark.parametrize("value", ["", "1.5", 1.5, "10", -1, "nan", "1e999", True, None])
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


@pytest.mark.parametrize(
    "value", ["", "x", "0", "1001", "1/0", "nan", "1e9999999999", float("inf"), True, None, -5]
)
def test_rates_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'fps' must be a rate from 1 to 1000 per second"):
        options.rate("fps", value, 1, 1000)


def test_sizes_are_written_width_first_and_lie_in_memory_height_first() -> None:
    assert options.size("size", "1280x720") == (720, 1280)
    assert options.size("size", "64X48") == options.size("size", [48, 64]) == (48, 64)


@pytest.mark.parametrize(
    "value",
    ["", "640", "640x", "x480", "0x480", "640x-1", "1x99999", "1x1x1", (1, True), (0.5, 1), None],
)
def test_sizes_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'size' must be WIDTHxHEIGHT in pixels"):
        options.size("size", value)


def test_indices_are_one_or_several() -> None:
    assert options.indices("channel", 3) == options.indices("channel", "3") == (3,)
    assert options.indices("channel", "1, 0") == (1, 0)


@pytest.mark.parametrize("value", ["", "a", "1,1", -1, "1,", 1.5, True, None, "99999"])
def test_indices_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'channel' must be a number from 0 to 1023"):
        options.indices("channel", value)


@pytest.mark.parametrize(
    ("value", "factor"), [("1/32768", 2.0**-15), (2, 2), ("-0.5", -0.5), ("3 / 4", 0.75)]
)
def test_factors_may_be_fractions(value: object, factor: float) -> None:
    assert options.factor("scale", value) == factor


@pytest.mark.parametrize("value", [0, "1/0", "x", "1/x", "nan", "inf", None, True, 1e300, "1/2/3"])
def test_factors_outside_are_refused(value: object) -> None:
    with pytest.raises(UsageError, match="'scale' must be a number"):
        options.factor("scale", value)


def test_what_cannot_be_written_is_refused_all_the_same() -> None:
    huge = 2**200_000
    for read in (
        lambda value: options.number("n", value, 0, 9),
        lambda value: options.integer("n", value, 0, 9),
        lambda value: options.rate("n", value),
        lambda value: options.size("n", value),
        lambda value: options.factor("n", value),
        lambda value: options.indices("n", value),
        lambda value: options.flag("n", value),
        lambda value: options.choice("n", value, ["a"]),
        lambda value: options.text("n", value),
    ):
        for value in (huge, [huge], "x" * 100_000, None, {}, 1j):
            with pytest.raises(UsageError, match="option 'n' must be") as raised:
                read(value)
            assert len(str(raised.value)) < 400


def test_text() -> None:
    assert options.text("n", "a b") == "a b"
    for value in ("a\0", "\ud800", "x" * 5000, 5, None):
        with pytest.raises(UsageError, match="'n' must be Unicode of up to 4096 characters"):
            options.text("n", value)
