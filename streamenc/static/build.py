"""Builds a static graph once, proves that it computes what torch computes, and keeps it on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.errors import StaticGraphError
from streamenc.layers.base import Exact
from streamenc.models.base import Model
from streamenc.static.export import PACKAGES, Graph, StateLeaf, Step, example_inputs, export_step
from streamenc.static.precision import Precision, reduce_precision
from streamenc.static.runner import Runner

log = logging.getLogger(__name__)
STEP_FILE, DESCRIPTION_FILE = "step.onnx", "graph.json"
# Graphs on disk beyond so many bytes make room, those first that were not used for longest.
MOST_CACHED_BYTES = 4 << 30
CHECKED_STEPS = 6
# The largest difference from torch, relative to the largest value.
TOLERANCES: dict[Precision, float] = {"float32": 2e-5, "int16": 5e-3, "int8": 0.5}
# The share of codes that may differ: on near ties, and in what follows one in the same frame.
CODE_TOLERANCES: dict[Precision, float] = {"float32": 0.02, "int16": 0.05, "int8": 0.5}


def cache_folder() -> Path:
    """STREAMENC_CACHE, or `streamenc` in the user's cache folder."""
    if named := os.environ.get("STREAMENC_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamenc"


def build(model: Model, hops: int, precision: Precision) -> Graph:
    """The graph of a step of `hops` hops: from disk, or made and checked now.

    Raises UsageError where a package is missing, StaticGraphError where the graph does not compute
    what torch computes.
    """
    folder = cache_folder() / "graphs" / _key(model, hops, precision)
    graph = _read(folder)
    if graph is None:
        started = time.perf_counter()
        graph = make(model, hops, precision)
        error = check(model, graph, hops, precision)
        seconds = time.perf_counter() - started
        log.info(
            "%s: made the static graph of %d hop(s) in %s, %.1e from torch, in %.1f s",
            *(model.spec.name, hops, precision, error, seconds),
        )
        _write(folder, graph)
    return graph


def make(
    model: Model,
    hops: int = 1,
    precision: Precision = "float32",
    *,
    codebooks: int | None = None,
    start: bool = False,
) -> Graph:
    """Exports a step, see export_step, in `precision`."""
    graph = export_step(model, hops, codebooks=codebooks, start=start)
    exact = {
        f"model.{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, Exact)
        for parameter in module.state_dict()
    }
    reduce_precision(graph.proto, precision, exact)
    return graph


def check(
    model: Model,
    graph: Graph,
    hops: int,
    precision: Precision,
    codebooks: int | None = None,
    *,
    first: Graph | None = None,
) -> float:
    """The largest relative difference from torch over some steps, alone and in a batch; of codes,
    the share that differs.

    codebooks  As the graph was exported with.
    first      The graph of the first step, where there is one, to be checked too.
    Raises StaticGraphError where it is more than this precision may have.
    """
    runner = Runner(graph, torch.get_num_threads())
    starter = None if first is None else Runner(first, torch.get_num_threads())
    reference = Step(model, codebooks)
    differences = []
    with torch.inference_mode():
        for lanes in (1, 3):
            begin, *rest = example_inputs(
                model, CHECKED_STEPS, hops, codebooks, lanes=lanes, seed=lanes
            )
            expected, theirs = reference.run(begin, None)
            ours = states.clone(theirs)
            if starter is not None:
                y, started = starter.start(begin)
                differences.append(_difference(y, expected))
                for leaf, value in zip(states.leaves(ours), started, strict=True):
                    leaf.copy_(value)
            for x in rest:
                expected, theirs = reference.run(x, theirs)
                y, ours = runner.step(x, ours)
                differences.append(_difference(y, expected))
    codes = graph.y_dtype != "float32"
    worst = sum(differences) / len(differences) if codes else max(differences)
    most = CODE_TOLERANCES[precision] if codes else TOLERANCES[precision]
    if not worst <= most:
        raise StaticGraphError(
            f"the static graph of {model.spec.name} in {precision} differs from torch by "
            f"{worst:.1e} {'of all codes' if codes else 'of the largest value'}; at most {most:.0e} "
            "was wanted. Run the model in torch, or in float32"
        )
    return worst


def _difference(y: Tensor, expected: Tensor) -> float:
    if not y.is_floating_point():
        return float((y != expected).double().mean())
    return float((y - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _key(model: Model, hops: int, precision: Precision) -> str:
    """Names all that the graph depends on: weights, sources, versions, the processor's kind."""
    packages = [f"{name} {version(name)}" for name in ("torch", *PACKAGES)]
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    what = [model.fingerprint(), str(hops), precision, _sources(), cpu, *packages]
    return f"{model.spec.name}-{hashlib.sha256(' '.join(what).encode()).hexdigest()[:24]}"


def _sources() -> str:
    """A digest of the code that graphs come from: a graph of other code is another graph."""
    import streamenc_kernels

    package, digest = Path(__file__).parents[1], hashlib.sha256()
    folders = [package / name for name in ("layers", "models", "static")]
    for folder in [*folders, Path(streamenc_kernels.__file__).parent]:
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read(folder: Path) -> Graph | None:
    """What `_write` wrote, or None where it is missing or damaged."""
    import onnx

    try:
        described: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text())
        proto = onnx.load(folder / STEP_FILE)
        leaves = tuple(
            StateLeaf(leaf["name"], tuple(leaf["shape"]), leaf["dtype"], leaf["in_place"])
            for leaf in described["leaves"]
        )
        os.utime(folder)
    except FileNotFoundError:
        return None
    except Exception as error:  # protobuf's own, JSON's, a missing key: make it anew
        log.warning("%s is damaged and is made anew: %s", folder, error)
        return None
    return Graph(proto, leaves, tuple(described["x_shape"]), tuple(described["y_shape"]))


def _write(folder: Path, graph: Graph) -> None:
    """Puts the graph where the next process finds it; without room or rights there, it goes on."""
    described = {
        "leaves": [asdict(leaf) for leaf in graph.leaves],
        "x_shape": graph.x_shape,
        "y_shape": graph.y_shape,
    }
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        (partial / STEP_FILE).write_bytes(graph.proto.SerializeToString())
        (partial / DESCRIPTION_FILE).write_text(json.dumps(described))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        _make_room(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        log.warning("the static graph is not kept on disk: %s", error)


def _make_room(newest: Path) -> None:
    folders = sorted(newest.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for folder in folders:
        total += sum(path.stat().st_size for path in folder.iterdir())
        if total > MOST_CACHED_BYTES and folder != newest:
            shutil.rmtree(folder, ignore_errors=True)
