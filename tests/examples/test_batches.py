"""The examples that give tables their tokens: by Ray Data, by `datasets`, in NeMo Curator."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.raycluster import needs_ray

ROOT = Path(__file__).parents[2]
needs_curator = pytest.mark.skipif(
    importlib.util.find_spec("nemo_curator") is None, reason="NeMo Curator is not installed"
)


def said(name: str) -> list[str]:
    """The lines of an example that are about clips."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_datasets_map() -> None:
    pytest.importorskip("datasets")
    assert said("datasets_map.py")[-1] == "4 rows of 667 frames, equal to those of the clip alone"


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_tokenize_ray() -> None:
    lines = said("tokenize_ray.py")
    for name in ("first", "second"):
        assert f"{name}: 667 frames of 16 codes, equal to those of the clip alone" in lines
    assert any(line.startswith("broken: ") for line in lines)


@needs_curator
@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_curator_stage() -> None:
    lines = said("curator_stage.py")
    assert lines.count("speech.flac: 667 frames, equal to those of the clip alone") == 2
    assert "/no/such/clip.wav: there is no file '/no/such/clip.wav'" in lines
