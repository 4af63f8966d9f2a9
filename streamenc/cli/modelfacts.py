"""What a listed model promises, and the options of its family, before any weight is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from streamenc.cli.meanings import Option, loader_options, paragraph
from streamenc.errors import UsageError
from streamenc.registry import FAMILIES, LISTED, published_spec
from streamenc.spec import Port, StreamSpec

Rows = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A listed model, or a family, of which `spec` is None.

    layouts  How published weights may lie.
    models   Of a family, those that are listed.
    """

    name: str
    family: str
    caption: str
    layouts: str
    options: list[Option]
    spec: StreamSpec | None = None
    models: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON; rates are numbers, latency and delay are in milliseconds."""
        known: dict[str, Any] = {
            "name": self.name,
            "family": self.family,
            "caption": self.caption,
            "layouts": self.layouts,
            "options": [option.as_dict() for option in self.options],
        }
        if (spec := self.spec) is None:
            return {**known, "models": list(self.models)}
        return {
            **known,
            "equality": spec.equality,
            "note": spec.note,
            "latency_ms": 1000 * spec.latency_seconds,
            "delay_ms": _delay_ms(spec),
            "input": _port(spec.input),
            "output": _port(spec.output),
            "codebooks": spec.output.channels if spec.codebook_size else 0,
            "codebook_size": spec.codebook_size,
        }


def known_models() -> Iterable[str]:
    """The names that `facts_of` takes, without families."""
    return LISTED


def facts_of(name: str) -> ModelFacts:
    """Of a listed model or a family. Raises UsageError that names near ones."""
    if name in LISTED:
        family, variant, caption = LISTED[name]
        spec = published_spec(name)
        return ModelFacts(name, family, caption, _layouts(family), _options(family, variant), spec)
    if name in FAMILIES:
        models = tuple(each for each, listed in LISTED.items() if listed.family == name)
        doc = (inspect.getdoc(import_module(FAMILIES[name])) or "").partition("\n\n")[0]
        caption = " ".join(doc.split())
        return ModelFacts(name, name, caption, _layouts(name), _options(name, ""), None, models)
    near = get_close_matches(name, [*LISTED, *FAMILIES], 3, 0.4)
    near += [each for each in LISTED if name.lower() in each.lower() and each not in near][:3]
    raise UsageError(
        f"{name!r} is no listed model and no family; "
        + (f"near are {', '.join(near)}; " if near and name else "")
        + "`streamenc models` lists all. Of any other one load tells: streamenc.load(NAME).spec"
    )


def table_row(facts: ModelFacts) -> tuple[str, ...]:
    """The cells of a listed model in the table of all."""
    spec = facts.spec
    assert spec is not None
    return (
        facts.name,
        spec.equality,
        f"{1000 * spec.latency_seconds:.0f} ms",
        _input(spec),
        f"{float(spec.output.rate):g}/s",
        _codebooks(spec) or "-",
        facts.caption,
    )


def fact_rows(facts: ModelFacts) -> Rows:
    """(what, value), without the options."""
    rows = [("name", facts.name), ("family", facts.family), ("", facts.caption)]
    if (spec := facts.spec) is None:
        rows.append(("listed", ", ".join(facts.models) or "-"))
    else:
        rows += [
            ("input", _input(spec)),
            ("output", f"{spec.output.kind}, {float(spec.output.rate):g} frames a second"),
            ("codebooks", _codebooks(spec) or "-"),
            ("delay", f"{_delay_ms(spec):g} ms"),
            ("latency", f"{1000 * spec.latency_seconds:g} ms, a hop and the delay"),
            ("equality", spec.equality),
            ("note", spec.note or "-"),
        ]
    return [*rows, ("layouts", facts.layouts or "-")]


def _options(family: str, variant: str) -> list[Option]:
    module = import_module(FAMILIES[family])
    parameters = inspect.signature(module.load).parameters.values()
    # Where a loader takes any name, they are the fields of the variant's preset.
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return loader_options(module.load, module.PRESETS[variant] if takes_any else None)


def _layouts(family: str) -> str:
    doc = inspect.getdoc(import_module(FAMILIES[family])) or ""
    return paragraph(doc, "Layouts") or paragraph(doc, "Layout")


def _delay_ms(spec: StreamSpec) -> float:
    return float(1000 * spec.delay / spec.input.rate)


def _input(spec: StreamSpec) -> str:
    if spec.input.kind == "video":
        return "images"
    return f"{float(spec.input.rate):g} Hz x{spec.input.channels}"


def _codebooks(spec: StreamSpec) -> str:
    return f"{spec.output.channels}x{spec.codebook_size}" if spec.codebook_size else ""


def _port(port: Port) -> dict[str, Any]:
    return {"kind": port.kind, "rate": float(port.rate), "channels": port.channels}
