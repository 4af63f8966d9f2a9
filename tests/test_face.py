"""What `import streamenc` offers, and how it looks to a type checker."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import streamenc
import streamenc.errors

ROOT = Path(__file__).parents[1]
FACE = {
    "load", "register", "Codec", "Stream", "Scaled",
    "Pipeline", "Engine", "Session", "EngineServer", "RemoteEngine",
    "Graph", "Source", "Transform", "Sink", "Frame", "StreamInfo",
    "read", "Recording", "Track", "subscribe", "Subscription", "Piece",
    "__version__",
}  # fmt: skip
ERRORS = {
    name
    for name, error in vars(streamenc.errors).items()
    if inspect.isclass(error) and issubclass(error, streamenc.errors.StreamencError)
}
# What a user writes against the face, each name with the type that it should have.
PROGRAM = """
from typing import Any, assert_type

import numpy as np

import streamenc


class Double(streamenc.Transform):
    def open(self, info: streamenc.StreamInfo) -> streamenc.StreamInfo:
        return info

    def push(self, frame: streamenc.Frame) -> list[streamenc.Frame]:
        return [frame, frame]


streamenc.register("nodes", "double", Double)
codec = streamenc.load("nano", part="encoder")
assert_type(codec, streamenc.Codec)
with codec.stream() as stream:
    assert_type(stream, streamenc.Stream)
    codes = stream.push(np.zeros((1, 1, 320), np.float32))
assert_type(streamenc.__version__, str)
with streamenc.Pipeline() as pipeline:
    assert_type(pipeline, streamenc.Pipeline)
    node = pipeline.source("in", "talk.flac")
    assert_type(pipeline.graph, streamenc.Graph)
    pipeline.sink("print", lambda frame: print(frame.pts), node)
recording = streamenc.read("tokens.arrows")
assert_type(recording, streamenc.Recording)
assert_type(codec.encode_file("talk.flac"), streamenc.Recording)
assert_type(codec.frame_rate, float)
for tokens, seconds, gap in streamenc.subscribe("zmq+tcp://127.0.0.1:5555"):
    assert_type(tokens, np.ndarray[Any, Any])
    assert_type(seconds, float)
    assert_type(gap, bool)
try:
    pass
except (streamenc.NodeError, streamenc.StreamencError) as error:
    assert_type(error, streamenc.StreamencError)
"""
WRONG = """
import streamenc

streamenc.load(3)
streamenc.load("nano").stream(batch="two")
streamenc.nothing
"""


def test_the_face_is_these_names() -> None:
    assert set(streamenc.__all__) == FACE | ERRORS
    assert dir(streamenc) == sorted(streamenc.__all__)
    for name in streamenc.__all__:
        assert getattr(streamenc, name) is not None
    assert streamenc.__version__[0].isdigit()


def test_each_name_is_the_one_of_its_module() -> None:
    for name, module in streamenc._HOMES.items():
        assert getattr(streamenc, name).__module__ == module
    assert {*streamenc._HOMES, "__version__"} == set(streamenc.__all__)


def test_both_packages_say_that_they_are_typed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    data = settings["tool"]["setuptools"]["package-data"]
    for folder in (ROOT / "streamenc", ROOT / "kernels" / "streamenc_kernels"):
        assert (folder / "py.typed").is_file() and "py.typed" in data[folder.name]


def test_the_docs_mention_each_name() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    assert not [name for name in FACE - {"__version__"} if name not in text]


def test_an_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'streamenc' has no attribute 'nothing'"):
        _ = streamenc.nothing


def test_a_star_import() -> None:
    names: dict[str, object] = {}
    exec("from streamenc import *", names)
    assert set(streamenc.__all__) <= names.keys()


@pytest.mark.parametrize(
    "module",
    [
        "streamenc",
        "streamenc.graph.graph",
        "streamenc.io",
        "streamenc.cli.main",
        "streamenc.errors",
    ],
)
def test_what_needs_no_torch_imports_none(module: str) -> None:
    code = f"import {module}, sys; print('torch' in sys.modules, 'av' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"], done.stderr


def checked(files: list[Path], cwd: Path, *flags: str) -> str:
    """What mypy says of a user's files, with the settings that it has outside of this project."""
    flags = ("--config-file=", f"--cache-dir={cwd / 'cache'}", "--follow-imports=silent", *flags)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--ignore-missing-imports", *flags, *files],
        cwd=cwd,
        env={**os.environ, "MYPYPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_programs_of_users_are_checked_by_its_types(tmp_path: Path) -> None:
    program, wrong = tmp_path / "program.py", tmp_path / "wrong.py"
    program.write_text(PROGRAM)
    wrong.write_text(WRONG)
    found = checked([program, wrong], tmp_path, "--strict")
    mistakes = [line.split(":")[:2] for line in found.splitlines() if ": error: " in line]
    assert mistakes == [["wrong.py", "4"], ["wrong.py", "5"], ["wrong.py", "6"]], found
    found = checked(sorted((ROOT / "examples").glob("*.py")), tmp_path)
    assert found.startswith("Success"), found
