"""What options mean, read off signatures and docstrings: of sources, sinks and models."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields, is_dataclass
from fractions import Fraction
from typing import Any, NamedTuple

TYPES = {
    "int": "whole number",
    "float": "number",
    "Fraction": "number",
    "bool": "true or false",
    "str": "text",
    "Sequence[int]": "whole numbers",
}
# `name, name  Text`, or `name: Text`.
HEAD = re.compile(r"(?P<indent> *)(?P<names>\w+(?:, \w+)*)(?:: +| {2,})(?P<text>\S.*)")
REFERENCE = re.compile(r"\b[Aa]s (?:of|in)\s+(\w+)")


class Option(NamedTuple):
    """One option, as people and programs read it.

    type     In words; "" where any will do.
    default  None where the option has no value unless it is given.
    """

    name: str
    type: str
    default: Any
    meaning: str

    def row(self) -> tuple[str, str, str, str]:
        """Its cells in a table."""
        default = self.default
        shown = "-" if default in (None, "") else str(default)
        if isinstance(default, bool):
            shown = shown.lower()
        return self.name, self.type, shown, self.meaning

    def as_dict(self) -> dict[str, Any]:
        """For JSON: fractions are text."""
        default = str(self.default) if isinstance(self.default, Fraction) else self.default
        return {**self._asdict(), "default": default}


def class_options(
    cls: type, classes: Mapping[str, type], *, addressed: bool = True
) -> list[Option]:
    """The options of a source, sink or node: all that its constructor takes behind the address.

    classes    Name -> class, of those that its docstring may refer to ("as of MediaSource").
    addressed  Whether the first thing that it takes is an address; nodes have none.
    """
    parameters = list(inspect.signature(cls).parameters.values())[1 if addressed else 0 :]
    said = meanings(cls, {parameter.name for parameter in parameters}, classes)
    return [_option(parameter, said) for parameter in parameters]


def loader_options(load: Callable[..., Any], preset: object = None) -> list[Option]:
    """The options of a family: what its loader takes by name alone.

    preset  Where that is anything, a dataclass whose fields they are.
    """
    if is_dataclass(preset):
        names = [field.name for field in fields(preset)]
        said = meanings(preset, set(names), {})
        return [
            Option(f.name, _type(str(f.type), None), getattr(preset, f.name), said.get(f.name, ""))
            for f in fields(preset)
        ]
    parameters = inspect.signature(load).parameters.values()
    named = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    said = meanings(load, {parameter.name for parameter in named}, {})
    return [_option(parameter, said) for parameter in named]


def meanings(
    documented: object, names: Collection[str], classes: Mapping[str, type]
) -> dict[str, str]:
    """Name -> what the docstring says of it, in one line, for those of `names` that it tells.

    What stands there "as of" another of `classes` is looked up in that one's docstring.
    """
    doc = inspect.getdoc(documented) or ""
    found = _told(doc.splitlines(), names)
    there = [classes[name] for name in REFERENCE.findall(doc) if name in classes]
    untold = {name for name in names if name not in found or REFERENCE.match(found[name])}
    for other in there if untold else ():
        if other is not documented:
            found |= meanings(other, untold, classes)
    return found


def summary(documented: object) -> str:
    """The first sentence of a docstring."""
    first = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s(?=[A-Z`\"])", first, maxsplit=1)[0]


def paragraph(doc: str, start: str) -> str:
    """The rest of the paragraph that has the word `start` and a colon, or ""."""
    for piece in doc.split("\n\n"):
        _, colon, rest = piece.partition(f"{start}:")
        if colon:
            return " ".join(rest.split())
    return ""


def _told(lines: Iterable[str], names: Collection[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    heads: list[str] = []
    indent = 0
    for line in lines:
        match = HEAD.fullmatch(line)
        if match and set(match["names"].split(", ")) & set(names):
            heads, indent = match["names"].split(", "), len(match["indent"])
            found |= {name: match["text"] for name in heads if name in names}
        elif line.strip() and len(line) - len(line.lstrip()) > indent:
            found |= {name: f"{found[name]} {line.strip()}" for name in heads if name in names}
        else:
            heads = []
    return found


def _option(parameter: inspect.Parameter, said: Mapping[str, str]) -> Option:
    default = None if parameter.default is parameter.empty else parameter.default
    name = parameter.name
    return Option(name, _type(str(parameter.annotation), default), default, said.get(name, ""))


def _type(annotation: str, default: object) -> str:
    """In words. All options come as text too: that is named where it is the default, or alone."""
    kinds = [kind for kind in annotation.split(" | ") if kind not in ("None", "Any")]
    if not kinds and default is not None:
        kinds = [type(default).__name__]
    if len(kinds) > 1 and not (isinstance(default, str) and default):
        kinds = [kind for kind in kinds if kind != "str"]
    return " or ".join(dict.fromkeys(TYPES.get(kind, kind) for kind in kinds))
