"""Kernels compiled aside: by a driver of no device, into the cache that later launches read."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.gpu.phases import compiling

ASIDE = """
import sys
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from bench.gpu.phases.compiling import compiled_aside

class NoDevice:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

driver.set_active(NoDevice())

@triton.jit
def scale(x, y, count, FACTOR: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at, mask=at < count) * FACTOR, mask=at < count)

x = torch.ones(64)
launch = JITFunction.run
with compiled_aside(torch.device("cuda")) as names:
    for factor in (2, 3, 2):
        y = torch.empty(64)
        with torch.device("meta"):
            assert torch.empty(3).is_meta and torch.zeros(3).is_meta
        scale[(1,)](x, y, 60, FACTOR=factor, BLOCK=64)
        assert not y.any()  # not launched, and what it leaves unwritten is 0
assert names == ["scale"] * 3 and JITFunction.run is launch
assert torch.empty.__name__ == "empty"
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_each_variant_is_compiled_once_and_nothing_is_launched(tmp_path: Path) -> None:
    script = tmp_path / "aside.py"
    script.write_text(ASIDE)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment |= {
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "cache").rglob("scale.cubin"))) == 2


def test_all_parts_are_gone_through(phase, lines) -> None:
    compiling.run(phase)
    said = {line.name: line.note for line in lines() if line.table == compiling.TABLE}
    assert not [line.note for line in lines() if "Error" in line.note]
    assert list(said)[-3:] == ["kernels", "convolutions", "all"]
    assert all("launches" in note for note in said.values())
