"""What times and compares, and what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import run
from bench.gpu.phases import rates
from bench.gpu.run import NO_DEVICE
from bench.gpu.timing import SWITCHES, compared, float32_as, open_device, relative_error, times_ms

CPU = torch.device("cpu")
ROOT = Path(run.__file__).parents[2]

# What a machine that is lent for an hour need not have; torch, triton, numpy and safetensors stay.
BLOCKING = """
import sys
from importlib.machinery import PathFinder

NAMES = {
    "aiomqtt", "anyio", "av", "diffusers", "encodec", "huggingface_hub", "librosa", "matplotlib",
    "moshi", "msgspec", "onnx", "onnxruntime", "onnxscript", "pesq", "pyarrow", "pytest", "rich",
    "rustymimi", "scipy", "sounddevice", "soxr", "transformers", "typer", "zmq",
}

class Few(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in NAMES else super().find_spec(name, path, target)

sys.meta_path[:] = [Few if finder is PathFinder else finder for finder in sys.meta_path]
"""
IMPORTS = "; ".join(
    ["import sitecustomize, sys"]
    + [f"import {plan.target.partition(':')[0]}" for plan in run.PLANS.values()]
    + ["assert not sitecustomize.NAMES & set(sys.modules)"]
)


@pytest.fixture
def few(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that finds few packages, in its child processes, too."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKING)
    paths = [tmp_path / "site", ROOT, ROOT / "kernels"]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}


def test_phases_need_few_packages(few: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], env=few, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_dry_run_goes_through_all_phases_with_few_packages(
    few: dict[str, str], tmp_path: Path
) -> None:
    names = [name for name in run.PLANS if name != "moshi"]
    command = [sys.executable, "-m", "bench.gpu", "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--phases", ",".join(names)], env=few, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
    for name in names:
        assert f"  {name}: done in " in done.stdout


def test_rates_are_written_without_figures(phase, lines) -> None:
    rates.run(phase)
    found = [line for line in lines() if line.table == rates.TABLE]
    assert len(found) == 10 and not [line for line in found if line.value or line.note]
    assert "dry run" in lines()[0].facts["device"]
    [_, inside] = [line.note for line in lines() if line.table == "Switches"]
    assert "tf32" not in inside


def test_without_cuda_it_says_so(phase, monkeypatch, capsys) -> None:
    phase.dry = False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        open_device(phase)
    assert ended.value.code == NO_DEVICE and "no CUDA device" in capsys.readouterr().out


def test_float32_is_as_it_was_afterwards() -> None:
    before = {part: one.fp32_precision for part, one in SWITCHES.items()}
    with float32_as("tf32"):
        assert {one.fp32_precision for one in SWITCHES.values()} == {"tf32"}
        with float32_as("ieee"):
            assert {one.fp32_precision for one in SWITCHES.values()} == {"ieee"}
    assert {part: one.fp32_precision for part, one in SWITCHES.items()} == before


def test_times_end_in_time() -> None:
    assert len(times_ms(lambda _: None, CPU, 10, calls=7)) == 7
    assert len(times_ms(lambda _: None, CPU, 0)) == 5


def test_not_a_number_is_an_infinite_error() -> None:
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert not compared(torch.ones(2), torch.ones(1)).ok
