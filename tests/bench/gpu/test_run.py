"""What runs the phases: how they end, what is left of them, and what is said of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.gpu import rows, run
from bench.gpu.phase import Found, Phase
from bench.gpu.run import Plan

HERE = "tests.bench.gpu.endings"
PLANS = {
    "ends": Plan(f"{HERE}:ends", 30, "ends by itself"),
    "raises": Plan(f"{HERE}:raises", 30, "raises"),
    "fails": Plan(f"{HERE}:fails", 30, "a check fails"),
    "hangs": Plan(f"{HERE}:hangs", 1.5, "hangs", asked=True),
    "ignores": Plan(f"{HERE}:ignores", 1.0, "stops", asked=True),
    "killed": Plan(f"{HERE}:killed", 30, "is killed"),
    "loses": Plan(f"{HERE}:loses", 30, "loses its device"),
    "no-device": Plan(f"{HERE}:has_no_device", 30, "finds none", asked=True),
}


def made(folder: Path, *arguments: str) -> tuple[int, list[rows.Line]]:
    status = run.main(["--out", str(folder), *arguments], PLANS)
    return status, rows.read(folder / "gpu.jsonl")


def test_each_phase_ends_alone_and_its_rows_survive(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    status, lines = made(tmp_path, "--phases", "raises,killed,loses,fails,ends")
    assert status == 1
    ended = {line.phase: line for line in lines if line.table == rows.RUN}
    assert list(ended) == ["raises", "killed", "loses", "fails", "ends"]
    assert "status 1" in ended["raises"].name
    assert ended["raises"].note == "more"  # of a message of two lines; gpu.log has it all
    assert "signal 9" in ended["killed"].name
    assert "lost to this process" in ended["loses"].note
    assert ended["fails"].ok is None and ended["ends"].ok is None
    names = [line.name for line in lines]
    assert {"before it raised", "before it was killed", "a search", "a step"} <= set(names)
    assert "never made" not in names
    assert "no such instruction" in (tmp_path / "gpu.log").read_text()

    by_name = {line.name: line for line in lines}
    assert by_name["a ring"].ok is False and "cannot launch" in by_name["a ring"].note
    assert by_name["not a number"].ok is False and by_name["not a number"].error is None
    # It is timed all the same, and marked.
    assert by_name["a ring in time"].proved is False and by_name["a ring in time"].p50_ms == 4
    assert "wanted 17 GB" in by_name["too large"].note
    step = by_name["a step"]
    assert step.proved and (step.min_ms, step.p50_ms, step.p99_ms, step.count) == (1, 2, 3, 3)

    said = capfd.readouterr().out
    assert "FAILED: fails: a ring" in said and "a ring in time" in said
    assert "its check FAILED" in said


def test_the_result_is_as_the_others_are(tmp_path: Path) -> None:
    status, _ = made(tmp_path, "--phases", "ends")
    assert status == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["name"] == "gpu" and found["settings"]["phases"] == ["ends"]
    assert found["machine"]["device"] == "none"
    titles = {table["title"]: table for table in found["tables"]}
    assert titles["Times"]["unit"] == "ms a step"
    assert titles["Times"]["rows"][0]["p50_ms"] == 2 and titles["Times"]["rows"][0]["min_ms"] == 1


def test_a_phase_that_hangs_ends_at_its_limit_and_says_where(tmp_path: Path) -> None:
    status, lines = made(tmp_path, "--phases", "hangs,ends")
    assert status == 1
    ended = {line.phase: line for line in lines if line.table == rows.RUN}
    assert "its limit" in ended["hangs"].name and "in hangs" in ended["hangs"].note
    assert "before it hung" in [line.name for line in lines] and ended["ends"].ok is None


def test_a_phase_that_does_not_end_itself_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GRACE_SECONDS", 0.2)
    status, lines = made(tmp_path, "--phases", "ignores")
    assert status == 1
    assert "its limit" in [line.name for line in lines if line.table == rows.RUN][0]
    [child] = [line.facts["child"] for line in lines if line.facts]
    stat = Path(f"/proc/{child}/stat")
    deadline = time.monotonic() + 5
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_that_is_told_to_end_writes_what_there_is(tmp_path: Path) -> None:
    code = f"""
import sys
from bench.gpu import run
from tests.bench.gpu.test_run import PLANS
from dataclasses import replace
plans = {{**PLANS, "hangs": replace(PLANS["hangs"], seconds=50)}}
sys.exit(run.main(["--out", {str(tmp_path)!r}, "--phases", "ends,hangs"], plans))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "before it hung" in line:
            break
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert "told to end" in out
    found = json.loads((tmp_path / "gpu.json").read_text())
    names = [row["name"] for table in found["tables"] for row in table["rows"]]
    assert {"a step", "before it hung", "told to end"} <= set(names)


def test_a_dry_run_withholds_figures(tmp_path: Path) -> None:
    status, lines = made(tmp_path, "--phases", "ends", "--dry-run")
    assert status == 0 and all(line.dry for line in lines)
    [step] = [line for line in lines if line.name == "a step"]
    assert step.count == 3 and step.p50_ms is None and step.min_ms is None


def test_an_unknown_phase_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run.main(["--out", str(tmp_path / "new"), "--phases", "mimi,typo"])
    assert ended.value.code == 2 and not (tmp_path / "new").exists()
    assert "no phase 'typo'; known: rates, compile, kernels" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--out", "FILE"], ["--out", "x", "--minutes", "0"]])
def test_what_makes_no_sense_is_refused(arguments: list[str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as ended:
        run.main([str(file) if part == "FILE" else part for part in arguments])
    assert ended.value.code == 2


def test_an_earlier_run_in_the_same_folder_stays(tmp_path: Path) -> None:
    made(tmp_path, "--phases", "ends")
    before = (tmp_path / "gpu.jsonl").read_bytes()
    made(tmp_path, "--phases", "ends")
    assert (tmp_path / "gpu.jsonl").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"gpu.{end}" for end in ("jsonl", "log", "json")),
        *(f"gpu-2.{end}" for end in ("jsonl", "log", "json")),
    }


def test_without_a_device_nothing_is_left(tmp_path: Path) -> None:
    status = run.main(["--out", str(tmp_path), "--phases", "no-device,ends"], PLANS)
    assert status == 1 and not list(tmp_path.iterdir())


def test_a_device_that_is_lost_between_phases_takes_no_rows_along(tmp_path: Path) -> None:
    status, lines = made(tmp_path, "--phases", "ends,no-device")
    assert status == 1 and "a step" in [line.name for line in lines]
    assert [line.ok for line in lines if line.phase == "no-device"] == [False]


def test_a_torn_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows.append(path, rows.Line("a", "b", "whole", error=float("inf")))
    with path.open("a") as file:
        file.write('{"phase": "a", "table": "b", "na')
    [line] = rows.read(path)
    assert line.name == "whole" and line.error is None


def test_what_there_is_no_time_for_is_told(tmp_path: Path) -> None:
    phase = Phase("late", tmp_path / "rows.jsonl", tmp_path, time.monotonic())
    assert phase.timed("Times", "a step", lambda: [1.0], unit="ms") is None
    assert not phase.check("search", "a search", Found)
    assert [line.note for line in rows.read(phase.rows)] == ["no time"] * 2
    assert phase.proved("search") is None


def test_the_default_phases_take_four_minutes_at_most() -> None:
    assert sum(plan.seconds for plan in run.PLANS.values() if not plan.asked) <= 240
    assert os.path.commonprefix([plan.target for plan in run.PLANS.values()]) == "bench.gpu.phases."
