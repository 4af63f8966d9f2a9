"""Who may import whom: four rules, and no exception to any of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = [(ROOT, "streamenc"), (ROOT / "kernels", "streamenc_kernels")]

# 1. From anywhere, and they import nothing but each other.
ANYWHERE = ["addresses", "errors", "latency", "options", "plugins", "trust"]
# 2. Frames: each room from its left. Never torch. In io, files, text and devices stand on media,
#    reading on files, network on text; and subscription knows it only by what io finds.
FRAMES = ["graph", "nodes", "io", "client"]
INSIDE_IO = {
    "media": set(),
    "devices": {"media"},
    "files": {"media"},
    "text": {"media"},
    "network": {"text"},
    "reading": {"files"},
    "subscription": set(),
}
# 3. Tensors: each room from its left, neighbours in a set not from each other. Never frames, and
#    only the engine knows asyncio.
TENSORS = [
    {"streamenc_kernels"},
    {"spec", "state", "threads"},
    {"layers"},
    {"checkpoints"},
    {"models"},
    {"stream"},
    {"onnx", "compiled"},
    {"engine"},
]
# 4. Only here do both meet; each from its left, and from any room above. Nobody imports testing.
MEETING = ["coding", "codec", "registry", "pipeline", "verify", "bulk", "serve", "cli", "__main__"]
TESTING = "testing"
FACE = "streamenc"

TENSOR_RANK = {room: rank for rank, rooms in enumerate(TENSORS) for room in rooms}
ROOMS = {*ANYWHERE, *FRAMES, *TENSOR_RANK, *MEETING, TESTING, FACE}


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


def room(module: str) -> str:
    """`streamenc.layers.conv` -> `layers`; `streamenc` itself is the face."""
    parts = module.split(".")
    return parts[1] if parts[0] == "streamenc" and len(parts) > 1 else parts[0]


def corridor(module: str) -> str:
    """`streamenc.io.files.pcm` -> `files`; "" outside of io, and for io itself."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["streamenc", "io"] and len(parts) > 2 else ""


IMPORTS = [
    (module, imported, f"{path.relative_to(ROOT)}:{line} imports {imported}")
    for module, path in MODULES.items()
    for imported, line in imports(path)
]
# Between two rooms of the house.
BETWEEN = [
    (room(module), room(imported), where)
    for module, imported, where in IMPORTS
    if imported in MODULES and room(module) != room(imported)
]


def may_see(here: str, there: str) -> bool:
    """Whether one room may import another."""
    if there in ANYWHERE:
        return here not in ANYWHERE or there == "errors"
    if here in FRAMES:
        return there in FRAMES[: FRAMES.index(here)]
    if here in TENSOR_RANK:
        return TENSOR_RANK.get(there, len(TENSORS)) < TENSOR_RANK[here]
    if here in MEETING:
        left = MEETING[: MEETING.index(here)]
        return there in (*left, *FRAMES, *TENSOR_RANK, FACE)
    return here in (TESTING, FACE) and there not in (TESTING, *ANYWHERE)


def test_every_module_has_its_room():
    assert {room(module) for module in MODULES} == ROOMS
    assert len(BETWEEN) > 300


def test_rooms_see_only_what_they_may():
    assert not [where for here, there, where in BETWEEN if not may_see(here, there)]


def test_inside_io():
    wrong = []
    for module, imported, where in IMPORTS:
        here, there = corridor(module), corridor(imported)
        if here and there and here != there and there not in INSIDE_IO[here]:
            wrong.append(where)
    assert not wrong
    assert {corridor(module) for module in MODULES} - {""} == INSIDE_IO.keys()


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("torch", FRAMES),
        ("asyncio", {*TENSOR_RANK, "codec", "registry"} - {"engine"}),
        ("anyio", {*TENSOR_RANK, "codec", "registry"}),
    ],
)
def test_what_is_never_imported(package, rooms):
    wrong = [where for m, i, where in IMPORTS if room(m) in rooms and i.split(".")[0] == package]
    assert not wrong


def test_no_two_modules_of_one_name():
    """So that a line of code is found by its name; folders of kernels are alike on purpose."""
    names: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if not path.stem.startswith("__") and room(module) != "streamenc_kernels":
            names.setdefault(path.stem, []).append(module)
    assert not {name: there for name, there in names.items() if len(there) > 1}


def test_rooms_are_small():
    """A folder that turns into a corridor, or a file into a hall, wants splitting by its ideas."""
    folders: dict[Path, int] = {}
    for path in MODULES.values():
        folders[path.parent] = folders.get(path.parent, 0) + (path.stem != "__init__")
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, f"{path} is a hall"
    flat = folders.pop(ROOT / "streamenc")
    assert flat <= 12, "the modules beside the rooms, __main__ among them"
    assert not {folder: files for folder, files in folders.items() if files > 12}


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


def test_frames_flow_without_torch():
    names = sorted(m for m in MODULES if room(m) in FRAMES and "mqtt" not in m)
    python(f"import {', '.join(names)}, sys; assert 'torch' not in sys.modules")


def test_the_client_needs_four_packages():
    """numpy, msgspec, websockets and anyio: what docs/server has one install."""
    others = ["torch", "av", "zmq", "pyarrow", "PIL", "soxr", "sounddevice", "safetensors"]
    others += ["huggingface_hub", "typer", "rich", "starlette", "uvicorn", "prometheus_client"]
    python(f"import sys; sys.modules.update(dict.fromkeys({others})); import streamenc.client")


def test_the_public_names_are_there():
    python("import streamenc; [getattr(streamenc, name) for name in streamenc.__all__]")
