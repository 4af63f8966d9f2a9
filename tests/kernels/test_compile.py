"""The kernels compile for every architecture, and fit: no register is spilled to memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

CUOBJDUMP = Path(find_spec("triton").origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# Of some cases, for one architecture.
SOME = """
import json, sys
from dataclasses import asdict
from streamenc_kernels.resources import usage

for case in sys.argv[2:]:
    print(json.dumps(asdict(usage(case, int(sys.argv[1])))))
"""
CASES = [
    "rvq_search, 256-d, few rows",
    "ring_attention, 2 float32 by index",
    "causal_conv, few 512 to 1024",
]
CONVOLUTIONS = [
    "causal_conv, 64 to 32",
    "causal_conv, 32 to 64 and residual",
    "causal_conv, 128 to 256",
    "causal_conv, few 256 to 512 and residual",
    "causal_conv, few 512 to 1024",
    "causal_conv, depthwise",
]
MORE = [
    "rvq_search, 256-d, many rows",
    "rvq_search, 512-d, many rows",
    "ring_attention, 2 bfloat16",
    "ring_attention, 2 float32 wide",
    "compress_spectrum",
    "depthwise_norm, 256 channels",
    "overlap_add, 8",
    "rotary_table, 2 of 64-d",
    "write_rows, 12 leaves masked",
    "write_rows, 12 leaves by index",
    "fused_linear, few rows, norm",
    "fused_linear, few rows, SwiGLU",
]


pytestmark = pytest.mark.skipif(
    not CUOBJDUMP.exists(), reason="this Triton comes without cuobjdump"
)


def compiled(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """In a process of its own, as another may have Triton in its interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**environment, "TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_some_fit(tmp_path):
    rows = compiled(tmp_path, "-c", SOME, "90", *CASES)
    assert [(row["case"], row["capability"]) for row in rows] == [(case, 90) for case in CASES]
    for row in rows:
        fits(row)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [[*CASES, *MORE], CONVOLUTIONS], ids=["others", "convolutions"])
def test_all_fit_everywhere(cases, tmp_path):
    module = ["-m", "streamenc_kernels.resources", "--json"]
    rows = compiled(tmp_path, *module, *cases)
    assert {row["case"] for row in rows} == {*cases}
    assert {row["capability"] for row in rows} == {80, 90, 100, 120}
    for row in rows:
        fits(row)


def fits(row: dict[str, Any]) -> None:
    """No register is spilled, and shared memory is within the limits."""
    print(row)
    assert row["local_bytes"] == 0, row
    assert row["shared_bytes"] <= row["shared_limit"], row
    # Three programs of four warps find room on each processor, of 65,536 registers, or one of more;
    # of those with tiles of products, two.
    few = row["threads"] == 128 and not row["case"].startswith("causal_conv")
    assert row["registers"] <= (168 if few else 255), row
