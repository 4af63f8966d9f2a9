"""The ways in which streamenc itself runs a step: in torch, compiled, in ONNX Runtime."""

from __future__ import annotations

from typing import Any, NamedTuple

import streamenc
from bench.harness import Row, Settings
from streamenc.codec import Codec
from streamenc.errors import CannotLower, UsageError
from streamenc.onnx.export import missing_packages
from streamenc_kernels.compiled.entry import why_not_compiled

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
        (compiled, why_not_compiled()),
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
        return streamenc.load(name, **options, **way.options)
    except UsageError as error:
        if not isinstance(error.__cause__, CannotLower):
            raise
        return f"not compiled: {error.__cause__}"
