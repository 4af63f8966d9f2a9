"""A replica is killed, and its stream goes on: the example of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.raycluster import needs_ray

ROOT = Path(__file__).parents[2]


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_stream_outlives_its_replica() -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "serve_ray.py"],
        env={**os.environ, "PYTHONPATH": path, "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if "raylet" not in line]
    assert "kill -9" in said[-3] and "goes on from the store" in said[-2]
    assert said[-1] == "400 frames, equal to those of the whole clip"
