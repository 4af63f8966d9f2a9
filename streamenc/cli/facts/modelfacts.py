"""What a listed model promises, and the options of its family, before any weight is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from streamenc import plugins
from streamenc.cli.facts.meanings import Option, loader_options, paragraph
from streamenc.errors import UsageError
from streamenc.models.families import FAMILIES
from streamenc.registry import (
    families,
    family_by_path,
    family_module,
    listed_models,
    published_spec,
)
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


def all_facts() -> Iterable[ModelFacts]:
    """Of all listed models, and of the families from outside that list none.

    What is broken of those from outside is named in the log.
    """
    listed = listed_models()
    bare = {*families()} - {*FAMILIES} - {entry.family for entry in listed.values()}
    for name in (*listed, *sorted(bare)):
        try:
            facts = facts_of(name)
        except UsageError as error:
            plugins.leave_out(error)
        else:
            yield facts


def facts_of(name: str) -> ModelFacts:
    """Of a listed model or a family, which may be "module:attribute". Raises UsageError that names
    near ones."""
    listed = listed_models()
    if name in listed:
        family, variant, caption = listed[name]
        spec = published_spec(name)
        return ModelFacts(name, family, caption, _layouts(family), _options(family, variant), spec)
    if name in families() or family_by_path(name) is not None:
        models = tuple(each for each, entry in listed.items() if entry.family == name)
        doc = (inspect.getdoc(family_module(name)) or "").partition("\n\n")[0]
        caption = " ".join(doc.split())
        return ModelFacts(name, name, caption, _layouts(name), _options(name, ""), None, models)
    near = get_close_matches(name, [*listed, *families()], 3, 0.4)
    near += [each for each in listed if name.lower() in each.lower() and each not in near][:3]
    raise UsageError(
        f"{name!r} is no listed model and no family; "
        + (f"near are {', '.join(near)}; " if near and name else "")
        + "`streamenc models` lists all. Of any other one load tells: streamenc.load(NAME).spec"
    )


def table_row(facts: ModelFacts) -> tuple[str, ...]:
    """The cells of a model, or of a family, in the table of all."""
    spec = facts.spec
    if spec is None:
        return (facts.name, *("-",) * 5, facts.caption)
    return (
        facts.name,
        spec.equality,
        f"{1000 * spec.latency_seconds:.0f} ms",
        _input(spec),
        "1 a text" if spec.input.kind == "text" else f"{float(spec.output.rate):g}/s",
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
            ("output", _output(spec)),
            ("codebooks", _codebooks(spec) or "-"),
            ("delay", f"{_delay_ms(spec):g} ms"),
            ("latency", f"{1000 * spec.latency_seconds:g} ms, a hop and the delay"),
            ("equality", spec.equality),
            ("note", spec.note or "-"),
        ]
    return [*rows, ("layouts", facts.layouts or "-")]


def _options(family: str, variant: str) -> list[Option]:
    module = family_module(family)
    parameters = inspect.signature(module.load).parameters.values()
    # Where a loader takes any name, they are the fields of the variant's preset.
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    presets = getattr(module, "PRESETS", {}) if takes_any else {}
    return loader_options(module.load, presets.get(variant))


def _layouts(family: str) -> str:
    doc = inspect.getdoc(family_module(family)) or ""
    return paragraph(doc, "Layouts") or paragraph(doc, "Layout")


def _delay_ms(spec: StreamSpec) -> float:
    return float(1000 * spec.delay / spec.input.rate)


def _input(spec: StreamSpec) -> str:
    if spec.input.kind in ("video", "text"):
        return "images" if spec.input.kind == "video" else "texts"
    return f"{float(spec.input.rate):g} Hz x{spec.input.channels}"


def _output(spec: StreamSpec) -> str:
    if spec.input.kind == "text":
        return f"{spec.output.kind}, one of {spec.output.channels} for each text"
    return f"{spec.output.kind}, {float(spec.output.rate):g} frames a second"


def _codebooks(spec: StreamSpec) -> str:
    return f"{spec.output.channels}x{spec.codebook_size}" if spec.codebook_size else ""


def _port(port: Port) -> dict[str, Any]:
    return {"kind": port.kind, "rate": float(port.rate), "channels": port.channels}
