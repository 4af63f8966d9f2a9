"""Options of sources and sinks: they come from Python, or as strings from the query of a URL."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

from streamenc.errors import UsageError


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float within [low, high]. Raises UsageError naming the option."""
    try:
        got = float(value) if isinstance(value, (str, int, float)) else float("nan")
    except ValueError:
        got = float("nan")
    if not low <= got <= high:
        raise UsageError(
            f"option {name!r} must be a number from {low:g} to {high:g}; got {value!r}"
        )
    return got


def integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int within [low, high]. Raises UsageError naming the option."""
    try:
        got = int(value) if isinstance(value, (str, int)) else low - 1
    except ValueError:
        got = low - 1
    if not low <= got <= high:
        raise UsageError(
            f"option {name!r} must be a whole number from {low} to {high}; got {value!r}"
        )
    return got


def rate(name: str, value: object, low: float, high: float) -> Fraction:
    """`value` as an exact rate within [low, high] per second: 25, 12.5, "30000/1001".

    Raises UsageError naming the option.
    """
    try:
        got = Fraction(value) if isinstance(value, (str, int, float, Fraction)) else Fraction(-1)
    except (ValueError, ZeroDivisionError, OverflowError):
        got = Fraction(-1)
    if not low <= got <= high:
        raise UsageError(
            f"option {name!r} must be a rate from {low:g} to {high:g} per second, such as 25 or "
            f"30000/1001; got {value!r}"
        )
    # What a float cannot say exactly (29.97) is meant as it is written.
    return got.limit_denominator(1_000_000)


def size(name: str, value: object, low: int = 1, high: int = 16_384) -> tuple[int, int]:
    """(width, height) of "WIDTHxHEIGHT", in pixels, each within [low, high].

    Raises UsageError naming the option.
    """
    width, _, height = str(value).lower().partition("x")
    if width.isdecimal() and height.isdecimal():
        pixels = int(width), int(height)
        if all(low <= side <= high for side in pixels):
            return pixels
    raise UsageError(
        f"option {name!r} must be WIDTHxHEIGHT in pixels, each from {low} to {high}, such as "
        f"1280x720; got {value!r}"
    )


def flag(name: str, value: object) -> bool:
    """`value` as a bool: true, yes, on, 1 or "" (as in `?name`); false, no, off, 0."""
    word = str(value).lower()
    if word in ("true", "yes", "on", "1", ""):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise UsageError(f"option {name!r} must be true or false; got {value!r}")


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """`value` where it is one of `known`. Raises UsageError listing them."""
    if isinstance(value, str) and value in known:
        return value
    raise UsageError(f"option {name!r} must be one of {', '.join(known)}; got {value!r}")
