"""Options of sources, sinks, nodes and models: they come from Python, or as text.

As text from the query of a URL, from `--set`, or from a pipeline file; a value and its text mean
the same. Each function names the option in its error.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from numbers import Real

from streamenc.errors import UsageError

MAX_WRITTEN = 200
WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1", ""), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


def number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float within [low, high]. Raises UsageError."""
    got = _float(value)
    if not low <= got <= high:
        raise _wrong(name, f"a number from {low:g} to {high:g}", value)
    return got


def integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int within [low, high], which a float must hold exactly. Raises UsageError."""
    got = _float(value)
    if not (low <= got <= high and got.is_integer()):
        raise _wrong(name, f"a whole number from {low} to {high}", value)
    return int(got)


def indices(name: str, value: object, high: int = 1023) -> tuple[int, ...]:
    """`value` as different whole numbers from 0: 1, or "0,1". Raises UsageError."""
    parts = _text(value).split(",")
    numbers = tuple(int(part) for part in parts if part.strip().isdecimal() and len(part) < 10)
    if len(numbers) != len(parts) or max(numbers) > high or len({*numbers}) < len(numbers):
        raise _wrong(name, f"a number from 0 to {high}, or several such as 0,1", value)
    return numbers


def factor(name: str, value: object) -> float:
    """`value` as a number to multiply by, which may be a fraction: 2, "1/32768".

    Raises UsageError.
    """
    above, slash, below = _text(value).partition("/")
    divisor = _float(below) if slash else 1.0
    got = _float(above) / divisor if divisor else float("nan")
    if not 1e-12 <= abs(got) <= 1e12:
        raise _wrong(name, "a number from 1e-12 to 1e12, such as 2 or 1/32768", value)
    return got


def rate(name: str, value: object, low: float = 0.0001, high: float = 100_000) -> Fraction:
    """`value` as an exact rate within [low, high] per second: 25, 12.5, "30000/1001".

    Raises UsageError.
    """
    text = _text(value)
    try:
        # A power of ten that no float holds would fill the memory as a fraction.
        got = Fraction(text) if "/" in text or low <= _float(text) <= high else Fraction(-1)
    except (ValueError, ZeroDivisionError):
        got = Fraction(-1)
    if not low <= got <= high:
        wanted = f"a rate from {low:g} to {high:g} per second, such as 25 or 30000/1001"
        raise _wrong(name, wanted, value)
    # What a float cannot say exactly (29.97) is meant as it is written.
    return got.limit_denominator(1_000_000)


def size(name: str, value: object, low: int = 1, high: int = 16_384) -> tuple[int, int]:
    """(height, width) in pixels, each within [low, high].

    value  The text "WIDTHxHEIGHT", as sizes are written, or a pair (height, width), as images lie
           in memory.

    Raises UsageError.
    """
    if isinstance(value, list | tuple) and len(value) == 2:
        sides = [_text(side) for side in value]
    else:
        sides = _text(value).lower().split("x")[::-1]
    if len(sides) == 2 and all(side.isdecimal() and len(side) < 10 for side in sides):
        height, width = (int(side) for side in sides)
        if low <= height <= high and low <= width <= high:
            return height, width
    wanted = f"WIDTHxHEIGHT in pixels, each from {low} to {high}, such as 1280x720"
    raise _wrong(name, wanted, value)


def flag(name: str, value: object) -> bool:
    """`value` as a bool: true, yes, on, 1 or "" (as in `?name`); false, no, off, 0.

    Raises UsageError.
    """
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else _text(value)
    known = None if word == "" and not isinstance(value, str) else WORDS.get(word)
    if known is None:
        raise _wrong(name, "true or false", value)
    return known


def text(name: str, value: object, most: int = 4096) -> str:
    """`value` where it is text that names something: not long, without zero bytes, and Unicode.

    Raises UsageError.
    """
    odd = not isinstance(value, str) or any(c == "\0" or "\ud800" <= c < "\ue000" for c in value)
    if isinstance(value, str) and len(value) <= most and not odd:
        return value
    raise _wrong(name, f"Unicode of up to {most} characters, none of them zero", value)


def choice(name: str, value: object, known: Iterable[str]) -> str:
    """`value` where it is one of `known`. Raises UsageError listing them."""
    if isinstance(value, str) and value in known:
        return value
    raise _wrong(name, f"one of {', '.join(known)}", value)


def written(value: object) -> str:
    """`value` as Python writes it, for a message: no more than a line of it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, or lists as deep
        return f"a {type(value).__name__} that is too long to be written"
    return text if len(text) <= MAX_WRITTEN else f"{text[:MAX_WRITTEN]}..."


def _text(value: object) -> str:
    """A number as it is written, or the text itself; "" for all else, and true is no number."""
    if isinstance(value, bool) or not isinstance(value, str | Real):
        return ""
    try:
        return str(value).strip()
    except ValueError:  # an int of thousands of digits
        return ""


def _float(value: object) -> float:
    try:
        return float(_text(value))
    except ValueError:
        return float("nan")


def _wrong(name: str, wanted: str, value: object) -> UsageError:
    return UsageError(f"option {name!r} must be {wanted}; got {written(value)}")
