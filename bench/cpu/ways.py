"""The ways in which streamenc itself runs a step: in torch, compiled, in ONNX Runtime."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, NamedTuple

import streamenc
from bench.harness import Row, Settings
from streamenc.codec import Codec
from streamenc.errors import CannotLower
from streamenc.onnx.export import missing_packages

OURS = "streamenc"
# What the others are compared with: torch, as written.
PLAIN = {"backend": "torch"}


class Way(NamedTuple):
    """How it is called, "" for torch, and how a model is loaded so."""

    how: str
    options: dict[str, str]

    @property
    def name(self) -> str:
        return f"{OURS}, {self.how}" if self.how else OURS


def ways(settings: Settings) -> tuple[list[Way], list[Row]]:
    """Those beside torch that can run here, and the rows of those that cannot.

    In a quick run none is exported to ONNX, which takes ten seconds for a large model.
    """
    compiled = [
        Way(f"compiled, {precision}", {"backend": "compiled", "precision": precision})
        for precision in ("int16", "float32")
    ]
    exported = [
        Way(f"ONNX step, {precision}", {"backend": "onnx", "precision": precision})
        for precision in ("float32",)
    ]
    if settings.quick:
        compiled, exported = compiled[:1], []
    reasons = (
        (compiled, None if find_spec("numba") else "not installed (numba)"),
        (exported, missing_packages()),
    )
    found: list[Way] = []
    absent: list[Row] = []
    for some, reason in reasons:
        if reason:
            absent += [Row(way.name, note=reason) for way in some]
        else:
            found += some
    return found, absent


def loaded(name: str, way: Way, **options: Any) -> Codec | str:
    """As `streamenc.load` gives it in this way; or why this model has no such step."""
    try:
        return _load(name, **options, **way.options)
    except CannotLower as error:
        return f"not compiled: {error}"


def _load(name: str, *, backend: str, precision: str = "float32", **options: Any) -> Codec:
    if backend != "compiled":
        return streamenc.load(name, backend=backend, precision=precision, **options)
    from streamenc.compiled.compiledmodel import CompiledModel

    plain = streamenc.load(name, **options)
    encoder = CompiledModel(plain.encoder, precision) if plain.has_encoder else None
    decoder = CompiledModel(plain.decoder, precision) if plain.has_decoder else None
    return Codec(plain.name, encoder, decoder, public_name=plain.public_name, family=plain.family)
