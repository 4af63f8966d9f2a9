"""Names with braces, as shells and WebDataset write many of them: shard-{000..999}.tar."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from streamenc.errors import UsageError

MAX_NAMES = 1_000_000
MAX_DEPTH = 8
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")


def has_braces(name: str) -> bool:
    """Whether it stands for several names."""
    return _outermost(name) is not None


def expanded(name: str) -> list[str]:
    """All names that it stands for, in the order of a shell; itself alone without braces.

    `{0..9}` counts, with as many digits as its ends have and by the step of `{0..9..3}`; `{a,b}`
    is each of them; both may stand within another. Raises UsageError for more than MAX_NAMES.
    """
    found = list(itertools.islice(_expand(name, 0), MAX_NAMES + 1))
    if len(found) > MAX_NAMES:
        raise UsageError(f"{name!r} stands for more than {MAX_NAMES:,} names; give a smaller range")
    return found


def _expand(name: str, depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH:
        raise UsageError(f"braces stand in braces more than {MAX_DEPTH} deep: {name!r}")
    opening = _outermost(name)
    if opening is None:
        yield name
        return
    first, last = opening
    before, inside, behind = name[:first], name[first + 1 : last], name[last + 1 :]
    for middle in _alternatives(inside, depth):
        for rest in _expand(behind, depth):
            yield before + middle + rest


def _outermost(name: str) -> tuple[int, int] | None:
    """Where the first pair of braces that stand for something opens and closes."""
    for first, letter in enumerate(name):
        if letter != "{":
            continue
        depth = 0
        for last in range(first, len(name)):
            depth += {"{": 1, "}": -1}.get(name[last], 0)
            if depth == 0:
                if _means_several(name[first + 1 : last]):
                    return first, last
                break
    return None


def _means_several(inside: str) -> bool:
    return len(_split(inside)) > 1 or _RANGE.fullmatch(inside) is not None


def _alternatives(inside: str, depth: int) -> Iterator[str]:
    counted = _RANGE.fullmatch(inside)
    if counted is None:
        for part in _split(inside):
            yield from _expand(part, depth + 1)
        return
    first, last, step = int(counted[1]), int(counted[2]), abs(int(counted[3] or 1)) or 1
    padded = any(re.match(r"-?0\d", end) for end in counted.group(1, 2))
    width = max(len(counted[1]), len(counted[2])) if padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    for number in numbers:
        yield f"{number:0{width}d}"


def _split(inside: str) -> list[str]:
    """At the commas that are in no inner braces."""
    parts, depth = [""], 0
    for letter in inside:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
