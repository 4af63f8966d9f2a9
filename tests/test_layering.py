"""Who may import whom: each module only from its left, torch on the tensor side alone."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [(ROOT, "streamenc"), (ROOT / "kernels", "streamenc_kernels")]

# From left to right: each module or package may import itself and what stands before it.
TENSOR_SIDE = [
    "streamenc_kernels",
    "streamenc.state",
    "streamenc.spec",
    "streamenc.layers",
    "streamenc.torchscript",
    "streamenc.checkpoints",
    "streamenc.models",
    "streamenc.static",
    "streamenc.stream",
    "streamenc.codec",
    "streamenc.registry",
    "streamenc.engine",
]
STREAM_SIDE = [
    "streamenc.frames",
    "streamenc.clock",
    "streamenc.worker",
    "streamenc.signals",
    "streamenc.statistics",
    "streamenc.metrics",
    "streamenc.channel",
    "streamenc.merge",
    "streamenc.node",
    "streamenc.vertex",
    "streamenc.graph",
    "streamenc.nodes",
    "streamenc.io",
]
# The nodes that carry the stream side into the engine.
BRIDGES = {"streamenc.nodes.model", "streamenc.nodes.encode", "streamenc.nodes.decode"}
# What users touch: may import both sides.
TOP = [
    "streamenc.plot",
    "streamenc.contactsheet",
    "streamenc.inspection",
    "streamenc.pipeline",
    "streamenc.show",
    "streamenc.clioptions",
    "streamenc.cli",
    "streamenc.__main__",
    "streamenc",
]
MAY_SEE_THE_ENGINE = {
    *BRIDGES,
    "streamenc.inspection",
    "streamenc.pipeline",
    "streamenc.cli",
}
# What both sides stand on.
EVERYWHERE = {"streamenc.errors", "streamenc.latency"}


def modules() -> Iterator[tuple[str, Path]]:
    for folder, package in PACKAGES:
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """The modules that a file imports anywhere, but not those that only a type checker sees."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for part in node.body
        for inner in ast.walk(part)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{path}:{node.lineno}: imports by full names"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module, node.lineno


def unit(module: str) -> str:
    """`streamenc.layers.conv` -> `streamenc.layers`."""
    head = module.split(".")
    return head[0] if head[0] == "streamenc_kernels" else ".".join(head[:2])


IMPORTS = [
    (module, imported, f"{path.relative_to(ROOT)}:{line} imports {imported}")
    for module, path in MODULES.items()
    for imported, line in imports(path)
]
OURS = [(m, i, where) for m, i, where in IMPORTS if i in MODULES and i not in EVERYWHERE]


def test_every_module_has_its_place():
    known = {*TENSOR_SIDE, *STREAM_SIDE, *TOP, *EVERYWHERE}
    assert {unit(module) for module in MODULES} == known
    assert BRIDGES <= MODULES.keys()
    assert len(OURS) > 100


@pytest.mark.parametrize("side", [TENSOR_SIDE, STREAM_SIDE, TOP], ids=["tensor", "stream", "top"])
def test_each_imports_only_from_its_left(side):
    wrong = [
        where
        for module, imported, where in OURS
        if unit(module) in side
        and unit(imported) in side
        and side.index(unit(imported)) > side.index(unit(module))
    ]
    assert not wrong


def test_what_both_sides_stand_on_imports_nothing_of_ours():
    ours = {"streamenc", "streamenc_kernels", "torch"}
    assert not [
        where
        for module, imported, where in IMPORTS
        if module in EVERYWHERE and imported.split(".")[0] in ours
    ]


def test_errors_imports_nothing():
    wanted = ["__future__"]
    assert [i for module, i, _ in IMPORTS if module == "streamenc.errors"] == wanted


def test_the_stream_side_hides_no_import_of_its_own():
    """What only a type checker sees is for packages that cost time, not for circles."""
    hidden = re.compile(r"if TYPE_CHECKING:\n    (from|import) streamenc")
    assert not [
        module
        for module, path in MODULES.items()
        if unit(module) in STREAM_SIDE and hidden.search(path.read_text(encoding="utf-8"))
    ]


def test_the_tensor_side_knows_nothing_of_the_stream_side():
    assert not [
        where
        for module, imported, where in OURS
        if unit(module) in TENSOR_SIDE and unit(imported) not in TENSOR_SIDE
    ]


def test_the_stream_side_knows_no_tensor():
    wrong = [
        where
        for module, imported, where in IMPORTS
        if unit(module) in STREAM_SIDE
        and module not in BRIDGES
        and (imported.split(".")[0] == "torch" or unit(imported) in TENSOR_SIDE)
    ]
    assert not wrong


def test_no_node_loads_a_model():
    assert not [
        where
        for module, imported, where in OURS
        if unit(module) == "streamenc.nodes" and imported == "streamenc.registry"
    ]


def test_only_bridges_and_the_top_see_the_engine():
    assert not [
        where
        for module, imported, where in OURS
        if unit(imported) == "streamenc.engine"
        and unit(module) != "streamenc.engine"
        and module not in MAY_SEE_THE_ENGINE
    ]


def test_no_stream_side_module_imports_the_top():
    assert not [
        where
        for module, imported, where in OURS
        if unit(module) in STREAM_SIDE and unit(imported) in TOP and imported != "streamenc"
    ]


def python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True
    )
    return done.stdout


def test_import_streamenc_is_fast_and_without_torch():
    """0.3 s is meant for a quiet machine; the fastest of several is taken."""
    program = (
        "import time; start = time.perf_counter(); import streamenc, sys; "
        "took = time.perf_counter() - start; "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(took)"
    )
    times = [float(python(program)) for _ in range(3)]
    print(f"import streamenc: {min(times) * 1e3:.0f} ms")
    assert min(times) < 0.3


def test_the_stream_side_runs_without_torch():
    names = sorted(
        module
        for module in MODULES
        if unit(module) in STREAM_SIDE and module not in BRIDGES and "mqtt" not in module
    )
    python(f"import {', '.join(names)}, sys; assert 'torch' not in sys.modules")


def test_the_public_names_are_there():
    python("import streamenc; [getattr(streamenc, name) for name in streamenc.__all__]")
