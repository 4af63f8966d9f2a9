"""Exported files: stepped by onnxruntime and numpy alone, they give torch's codes."""

from __future__ import annotations

import json
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import streamenc
from streamenc.errors import ExportError, UsageError
from streamenc.onnx import portable
from streamenc.onnx.portable import export_files
from tests.support.zoo import model

EXAMPLE = Path(__file__).parents[2] / "examples" / "onnx_step.py"


def test_the_example_gives_the_codes_of_torch(tmp_path):
    codec = streamenc.load("nano", backend="torch")
    made = export_files(codec.encoder, tmp_path / "nano.onnx", codebooks=6)
    assert made["difference"] < 0.01
    rng = np.random.default_rng(0)
    pcm = (2000 * np.sin(np.arange(16_000) * rng.uniform(0.05, 0.1))).astype(np.int16)
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(pcm.tobytes())
    blocked = (
        "import sys, runpy\n"
        "for name in ('torch', 'streamenc'): sys.modules[name] = None\n"
        f"sys.argv = ['onnx_step.py', {str(tmp_path / 'nano.json')!r}, "
        f"{str(tmp_path / 'tone.wav')!r}]\n"
        f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    codes = codec.stream(codebooks=6).push(torch.from_numpy(pcm.astype(np.float32) / 32768))
    assert f"first frame: {codes[0, :, 0].tolist()}" in done.stdout
    assert f"6 codebooks x {codes.shape[-1]} frames" in done.stdout


@pytest.mark.parametrize("side", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_state_is_named_and_described(tmp_path, side):
    import onnx

    export_files(model("mimi", side, torch.float32), tmp_path / "m.onnx", codebooks=3)
    about = json.loads((tmp_path / "m.json").read_text())
    graph = onnx.load(tmp_path / about["step"]).graph
    names = [leaf["name"] for leaf in about["state"]]
    assert [i.name for i in graph.input] == ["x", *names]
    assert [o.name for o in graph.output] == ["y", *(leaf["next"] for leaf in about["state"])]
    assert any(leaf["in_place"] for leaf in about["state"])
    start = onnx.load(tmp_path / about["start"]).graph
    assert [i.name for i in start.input] == ["x"]
    content = (tmp_path / about["step"]).read_bytes()
    assert str(Path.home()).encode() not in content and b".py" not in content


def test_a_step_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    of = model("nano", "decoder", torch.float32)
    make = portable.export_step

    def broken(*args, **options):
        exported = make(*args, **options)
        for tensor in exported.proto.graph.initializer:
            if tensor.name.endswith("bias"):
                tensor.raw_data = bytes(len(tensor.raw_data))
        return exported

    monkeypatch.setattr(portable, "export_step", broken)
    with pytest.raises(ExportError, match="differs from torch"):
        export_files(of, tmp_path / "n.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("nano", "n.bin", "ends in .onnx"),
        ("mel", "m.onnx", "has no codes"),
        ("encodec-48k", "e.onnx", "whole segments"),
        ("clip", "c.onnx", "clip is of images; only steps over sound"),
        ("bert", "b.onnx", "bert is of texts; only steps over sound"),
    ],
)
def test_what_cannot_be_exported_says_why(tmp_path, name, path, message):
    with pytest.raises(UsageError, match=message):
        export_files(model(name, "encoder", torch.float32), tmp_path / path)
