"""Exports a step once, proves that it computes what torch computes, and keeps it on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import streamenc_kernels
from streamenc import layers, models, spec
from streamenc import onnx as backend
from streamenc import state as states
from streamenc.errors import ExportError
from streamenc.models.model import Model
from streamenc.onnx.export import (
    PACKAGES,
    ExportedStep,
    StateLeaf,
    Step,
    example_inputs,
    export_step,
)
from streamenc.onnx.runner import Runner
from streamenc.threads import step_threads
from streamenc.trust.privatefolder import check_private, make_private, read_private, write_private

log = logging.getLogger(__name__)
STEP_FILE, DESCRIPTION_FILE, PARTIAL = "step.onnx", "step.json", ".partial"
STEPS_FOLDER = "onnx-steps"  # in the cache folder
# Of a step there, and of one that is not whole yet.
_NAME = re.compile(r"[\w.-]+-[0-9a-f]{24}(\.[0-9a-f]{32}\.partial)?", re.ASCII)
# Steps on disk beyond so many bytes make room, those first that were not used for longest.
MOST_CACHED_BYTES = 4 << 30
CHECKED_STEPS = 6
_turn = threading.Lock()
# The largest difference from torch, relative to the largest value.
TOLERANCE = 2e-5
# The share of codes that may differ: on near ties, and in what follows one in the same frame.
CODE_TOLERANCE = 0.02


def cache_folder() -> Path:
    """STREAMENC_CACHE, or `streamenc` in the user's cache folder."""
    if named := os.environ.get("STREAMENC_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamenc"


def build(model: Model, hops: int) -> Runner:
    """A step of `hops` hops in ONNX, ready to run: from disk, or made and checked now.

    Threads take turns, and wait for each other.
    Raises UsageError where a package is missing, ExportError where the step cannot be exported or
    does not compute what torch computes.
    """
    with _turn:
        folder = (cache_folder() / STEPS_FOLDER).absolute() / _key(model, hops)
        threads = step_threads(model.spec, hops)
        runner = _read(folder, threads)
        if runner is not None:
            return runner
        started = time.perf_counter()
        exported = export_step(model, hops)
        error = check(model, exported, hops)
        seconds = time.perf_counter() - started
        log.info(
            "%s: exported the step of %d hop(s), %.1e from torch, in %.1f s",
            *(model.spec.name, hops, error, seconds),
        )
        _write(folder, exported)
        return Runner(exported, threads)


def check(
    model: Model,
    exported: ExportedStep,
    hops: int,
    codebooks: int | None = None,
    *,
    first: ExportedStep | None = None,
) -> float:
    """The largest relative difference from torch over some steps, alone and in a batch; of codes,
    the share that differs.

    codebooks  As the step was exported with.
    first      The first step of a stream, where it was exported, to be checked too.
    Raises ExportError where it is more than rounding explains.
    """
    threads = step_threads(model.spec, hops)
    runner = Runner(exported, threads)
    starter = None if first is None else Runner(first, threads)
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
                try:
                    y, ours = runner.step(x, ours)
                except RuntimeError as error:
                    raise ExportError(
                        f"ONNX Runtime cannot run the step of {model.spec.name}: {error}"
                    ) from error
                differences.append(_difference(y, expected))
    codes = exported.y_dtype != "float32"
    worst = sum(differences) / len(differences) if codes else max(differences)
    most = CODE_TOLERANCE if codes else TOLERANCE
    if not worst <= most:
        raise ExportError(
            f"the exported step of {model.spec.name} differs from torch by {worst:.1e} "
            f"{'of all codes' if codes else 'of the largest value'}; at most {most:.0e} was "
            "wanted. Run the model in torch"
        )
    return worst


def _difference(y: Tensor, expected: Tensor) -> float:
    if not y.is_floating_point():
        return float((y != expected).double().mean())
    return float((y - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _key(model: Model, hops: int) -> str:
    """Names all that the step depends on: weights, sources, versions, the processor's kind."""
    packages = [f"{name} {version(name)}" for name in ("torch", *PACKAGES)]
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    what = [model.fingerprint(), str(hops), digest_of(_sources()), cpu, *packages]
    name = re.sub(r"[^\w.-]", "-", model.spec.name, flags=re.ASCII)
    return f"{name}-{hashlib.sha256(' '.join(what).encode()).hexdigest()[:24]}"


def _sources() -> list[Path]:
    """The code that steps come from: files, and folders of packages with all that is in them."""
    modules = (spec, states, layers, models, backend, streamenc_kernels)
    files = [Path(module.__file__) for module in modules if module.__file__]
    return [path.parent if path.name == "__init__.py" else path for path in files]


def digest_of(roots: Iterable[Path]) -> str:
    """A digest of Python sources, by name and content: a step of other code is another step.

    roots  Files, and folders with those at any depth below them.
    """
    digest = hashlib.sha256()
    for root in roots:
        for path in sorted(root.rglob("*.py")) if root.is_dir() else [root]:
            name, content = path.relative_to(root.parent).as_posix(), path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()


def _read(folder: Path, threads: int) -> Runner | None:
    """What `_write` wrote, or None where it is missing or damaged, or others may have written it:
    a step that is run is believed."""
    import onnx

    try:
        for each in (folder.parent, folder):
            check_private(each)
        described: dict[str, Any] = json.loads(read_private(folder / DESCRIPTION_FILE))
        step = read_private(folder / STEP_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read, and the step is exported anew: %s", folder, error)
        return None
    except ValueError as error:
        log.warning("%s is damaged and is exported anew: %s", folder, error)
        return None
    try:
        if hashlib.sha256(step).hexdigest() != described["sha256"]:
            raise ValueError("its bytes are not those that were written")
        leaves = tuple(
            StateLeaf(leaf["name"], tuple(leaf["shape"]), leaf["dtype"], leaf["in_place"])
            for leaf in described["leaves"]
        )
        x_shape, y_shape = (tuple(described[name]) for name in ("x_shape", "y_shape"))
        exported = ExportedStep(onnx.load_from_string(step), leaves, x_shape, y_shape)
        runner = Runner(exported, threads)
    except Exception as error:  # protobuf's own, ONNX Runtime's, a missing key: export it anew
        log.warning("%s is damaged and is exported anew: %s", folder, error)
        return None
    with contextlib.suppress(OSError):  # the folder may be root's
        os.utime(folder)
    return runner


def _write(folder: Path, exported: ExportedStep) -> None:
    """Puts the step where the next process finds it; without room or rights there, it goes on."""
    step = exported.proto.SerializeToString()
    described = {
        "sha256": hashlib.sha256(step).hexdigest(),
        "leaves": [asdict(leaf) for leaf in exported.leaves],
        "x_shape": exported.x_shape,
        "y_shape": exported.y_shape,
    }
    partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        make_private(folder.parent)
        partial.mkdir(mode=0o700)
        write_private(partial / STEP_FILE, step)
        write_private(partial / DESCRIPTION_FILE, json.dumps(described).encode())
        _remove(folder)
        partial.rename(folder)
    except OSError as error:
        _remove(partial)
        log.warning(
            "the exported step is not kept on disk: %s. STREAMENC_CACHE names another place", error
        )
        return
    _make_room(folder)


def _remove(folder: Path) -> None:
    """A step on disk: only what `_write` writes, and the folder if nothing else is in it. What is a
    link is not followed."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            return
        for name in (STEP_FILE, DESCRIPTION_FILE):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _make_room(newest: Path) -> None:
    """Drops what was not used for longest, and what processes that were killed have left.

    Whatever else lies there, by its name or by what is in it, is left alone.
    """
    found: list[tuple[float, int, Path]] = []
    for path in newest.parent.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            if _NAME.fullmatch(path.name) and {*os.listdir(path)} <= {STEP_FILE, DESCRIPTION_FILE}:
                size = sum(file.lstat().st_size for file in path.iterdir())
                found.append((time.time() - path.lstat().st_mtime, size, path))
    total = 0
    for age, size, path in sorted(found):
        if path.suffix == PARTIAL:
            if age > 3600:
                _remove(path)
            continue
        total += size
        if total > MOST_CACHED_BYTES and path != newest:
            _remove(path)
