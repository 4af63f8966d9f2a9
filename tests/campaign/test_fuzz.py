"""`python -m tests.campaign fuzz`: faults are found, told, kept, and end nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign import fuzz
from tests.campaign.fuzz import Plan
from tests.campaign.tally import Tally
from tests.campaign.target import case_of
from tests.support.badtarget import NAME, BadTarget


def test_each_kind_of_fault_is_counted_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "HANG_SECONDS", 0.5)
    plan = Plan(12, float("inf"), 0, 0, guided=False, output=tmp_path, keep=False)
    tallies: list[Tally] = []
    fuzz.campaign([NAME], plan, 1, tallies)
    [found] = tallies
    assert (found.cases, found.refused, found.foreign) == (12, 3, 1)
    assert (found.over, found.crashes, found.note) == (3, 1, "")
    assert [fault["first_case"] for fault in found.faults] == [3, 4, 5, 6, 7]
    said = [fault["said"] for fault in found.faults]
    assert said[0].startswith("KeyError in badtarget.py")
    assert "MiB of memory, 32 allowed" in said[1] and "s of CPU time, 0.2 allowed" in said[2]
    assert "SIGABRT" in said[3] and said[4].startswith("hang") and "badtarget.py" in said[4]
    kept = {path.read_bytes() for path in (tmp_path / NAME).iterdir()}
    assert kept == {case_of(BadTarget(), NAME, 0, number) for number in range(3, 8)}


def test_the_command_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    out = tmp_path / "campaign.json"
    command = [sys.executable, "-m", "tests.campaign", "fuzz", "--only", "wire", "--cases", "50"]
    command += ["--out", str(out), "--output", str(tmp_path / "output")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=fuzz.ROOT)
    assert ran.returncode == 0, ran.stderr
    assert "worst MB" in ran.stdout and "wire" in ran.stdout
    [row] = json.loads(out.read_text())["fuzz"]["found"]["targets"]
    assert row["cases"] == 50 == row["refused"] + row["taken"]
