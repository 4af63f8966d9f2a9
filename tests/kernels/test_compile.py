"""The kernels compile for every architecture, and fit: no register is spilled to memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

CUOBJDUMP = Path(find_spec("triton").origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
CASES = ["rvq_search, 256-d", "rvq_search, 512-d", "ring_attention, 2 float32 masked"]
MORE = ["rvq_search, 256-d in 128 parts", "ring_attention, 2 bfloat16"]


@pytest.mark.skipif(not CUOBJDUMP.exists(), reason="this Triton comes without cuobjdump")
def test_no_spills_and_shared_memory_within_the_limits(tmp_path):
    """In a process of its own, as another may have Triton in its interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "streamenc_kernels.resources", "--json", *CASES, *MORE],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["case"] for row in rows} == {*CASES, *MORE}
    assert {row["capability"] for row in rows} == {80, 90, 100, 120}
    for row in rows:
        print(row)
        assert row["local_bytes"] == 0, row
        assert row["shared_bytes"] <= row["shared_limit"], row
        # Three programs of four warps find room on each processor, of 65,536 registers.
        assert row["registers"] <= 168, row
