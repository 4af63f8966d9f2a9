"""Options of models, which also come as text: from the command line, or from a pipeline file."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from streamenc.errors import UsageError


def whole_number(what: str, value: Any, least: int, most: int) -> int:
    """`value`, a number or its text, as an int. Raises UsageError."""
    try:
        number = int(value)
        good = not isinstance(value, bool) and number == float(value)
    except (TypeError, ValueError, OverflowError):
        good, number = False, 0
    if not good or not least <= number <= most:
        raise UsageError(f"{what} is {value!r}; wanted a whole number from {least} to {most}")
    return number


def flag(what: str, value: Any) -> bool:
    """`value`, a bool or its text. Raises UsageError."""
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise UsageError(f"{what} is {value!r}; wanted true or false") from None


def choice(what: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`, where it is one of them. Raises UsageError."""
    if value not in choices:
        raise UsageError(f"{what} is {value!r}; wanted {' or '.join(choices)}")
    return str(value)


def frame_rate(rate: Any) -> Fraction:
    """Images a second, from a number or its text. Raises UsageError."""
    try:
        number = Fraction(rate)
    except (TypeError, ValueError, ArithmeticError):
        number = Fraction(0)
    if number <= 0:
        raise UsageError(f"rate is {rate!r}; wanted images a second, such as 25")
    return number


def hidden_states(layer: Any, layers: Any, count: int) -> tuple[int, ...]:
    """Which hidden states come out of a network of `count` layers, of two names for one option.

    9, "6,9", [0, -1] or "all": 0 is what the first layer takes, n what layer n gives, -1 the last
    one's; None for that alone. Raises UsageError.
    """
    if layer is not None and layers is not None:
        raise UsageError("layer and layers are two names of one option; give one of them")
    wanted = layers if layer is None else layer
    if wanted is None:
        return (count,)
    if isinstance(wanted, str) and wanted == "all":
        return tuple(range(count + 1))
    parts = wanted.split(",") if isinstance(wanted, str) else wanted
    parts = list(parts) if isinstance(parts, Iterable) else [parts]
    numbers = [whole_number("layer", part, -count - 1, count) for part in parts]
    outputs = tuple(n % (count + 1) for n in numbers)
    if not outputs or len(set(outputs)) < len(outputs):
        raise UsageError(f"layers are numbers from 0 to {count}, each once; got {wanted!r}")
    return outputs
