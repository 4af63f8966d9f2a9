"""A model's step as files for other programs: ONNX, and a JSON that says how to step it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamenc.errors import OutputError, UsageError
from streamenc.models.model import Model
from streamenc.onnx.build import check
from streamenc.onnx.export import ExportedStep, export_step, why_not
from streamenc.onnx.onnxmodel import OnnxModel
from streamenc.spec import Port

FORMAT_VERSION = 1


def written(path: Path) -> tuple[Path, Path, Path]:
    """The files that `export_files` writes: the step, the first step, their description."""
    return path, path.with_name(f"{path.stem}.start.onnx"), path.with_suffix(".json")


def export_files(
    model: Model,
    path: Path,
    *,
    hops: int = 1,
    codebooks: int | None = None,
    overwrite: bool = True,
) -> dict[str, Any]:
    """Writes `path` (a step), beside it NAME.start.onnx (the first step) and NAME.json.

    An encoder's step gives codes, a decoder's takes them: `codebooks` of them, all where None.
    Checked against torch on random chunks before anything is written. Files that exist are
    replaced if `overwrite`, else refused.
    Returns what NAME.json holds, and under "difference" how far from torch it is.
    Raises UsageError, ExportError, or OutputError where the files cannot be written.
    """
    if isinstance(model, OnnxModel):
        model = model.model
    elif model.runs_in != "torch":
        raise UsageError(
            f"{model.spec.name} runs as {model.runs_in} steps, whose weights are rounded; load it "
            "with backend='torch' to export it"
        )
    spec = model.spec
    if path.suffix != ".onnx":
        raise UsageError(f"got {path.name}; wanted a name that ends in .onnx")
    if hops < 1:
        raise UsageError(f"a step has at least one hop; got {hops}")
    if reason := why_not(model):
        raise UsageError(reason)
    port = spec.input if spec.input.kind == "codes" else spec.output
    if spec.codebook_size:
        count = port.channels if codebooks is None else model.check_codebooks(codebooks)
    else:
        raise UsageError(f"{spec.name} has no codes; codecs can be exported")
    step = export_step(model, hops, codebooks=count)
    first = export_step(model, hops, codebooks=count, start=True)
    difference = check(model, step, hops, count, first=first)
    described = {
        "format": FORMAT_VERSION,
        "model": spec.name,
        "step": path.name,
        "start": written(path)[1].name,
        "codebooks": count,
        "codebook_size": spec.codebook_size,
        "input": _port(spec.input, step, spec.lead, hops * spec.hop),
        "output": _port(spec.output, step, spec.lead_out, hops * spec.hop_out, y=True),
        "state": [asdict(leaf) | {"next": leaf.following} for leaf in step.leaves],
    }
    contents = (
        step.proto.SerializeToString(),
        first.proto.SerializeToString(),
        f"{json.dumps(described, indent=2)}\n".encode(),
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, content in zip(written(path), contents, strict=True):
            with open(place, "wb" if overwrite else "xb") as file:
                file.write(content)
    except FileExistsError as error:
        raise OutputError(
            f"{error.filename} exists; replace it (overwrite), or choose another name"
        ) from error
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}") from error
    return described | {"difference": difference}


def _port(
    port: Port, exported: ExportedStep, first: int, later: int, *, y: bool = False
) -> dict[str, Any]:
    """The name, rate and shape (lanes, channels, items) of one side of a step."""
    shape = exported.y_shape if y else exported.x_shape
    codes = port.kind == "codes"
    return {
        "name": "y" if y else "x",
        "kind": port.kind,
        "rate": float(port.rate),
        "dtype": "int64" if codes else "float32",
        "channels": shape[0],
        "first_items": first,
        "items": later,
    }
