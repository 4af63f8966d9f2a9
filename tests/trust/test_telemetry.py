"""What the packages that are imported leave behind, and whom they call: nothing, and nobody."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from streamenc.trust import telemetry

STEP = """
import streamenc
import numpy as np
import torch
from onnx import TensorProto, helper
from streamenc.onnx.export import ExportedStep
from streamenc.onnx.runner import Runner

given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", [given], [made])
proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
runner = Runner(ExportedStep(proto, (), (1,), (1,)), 1)
assert runner.start(torch.ones(1))[0] == 2
"""
# What else is imported where it is installed, each by the room that needs it.
PACKAGES = ("huggingface_hub", "numba", "transformers", "datasets", "ray", "fsspec", "silero_vad")
IMPORTS = f"""
import importlib, importlib.util
for package in {PACKAGES}:
    if importlib.util.find_spec(package):
        importlib.import_module(package)
import os
from streamenc.trust.telemetry import OFF
assert all(os.environ[name] == value for name, value in OFF.items())
"""
# An address of a call to connect or sendto that leads away from this machine.
AWAY = re.compile(r'sin6?_addr.*?"(?!127\.|::1|0\.0\.0\.0|::")[0-9a-f.:]+"')


def run(program: str, home: Path, *before: str) -> None:
    given = {key: value for key, value in os.environ.items() if key not in telemetry.OFF}
    home.mkdir()
    done = subprocess.run(
        [*before, sys.executable, "-c", program],
        env={**given, "HOME": str(home), "XDG_CACHE_HOME": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_a_step_in_onnx_leaves_nothing_and_calls_nobody(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    calls = tmp_path / "calls"
    strace = shutil.which("strace")
    traced = (
        () if strace is None else (strace, "-f", "-e", "trace=connect,sendto", "-o", str(calls))
    )
    run(STEP, tmp_path / "home", *traced)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []
    if strace is not None:
        assert AWAY.findall(calls.read_text()) == []


@pytest.mark.slow
@pytest.mark.process
def test_nothing_that_is_imported_leaves_anything(tmp_path: Path) -> None:
    run(STEP + IMPORTS, tmp_path / "home")
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*telemetry.OFF]
    monkeypatch.setenv(names[0], "0")
    for name in names[1:]:
        monkeypatch.delenv(name, raising=False)
    telemetry.telemetry_off()
    assert os.environ[names[0]] == "0"
    assert all(os.environ[name] == telemetry.OFF[name] for name in names[1:])
