"""`python -m bench` as a user starts it, at its smallest."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main

ROOT = Path(__file__).parents[2]


def check_engine(results: dict[str, Any]) -> None:
    table, many, changes, profile = results["tables"]
    times = {row["name"]: row["p50_ms"] for row in table["rows"]}
    for row in [*many["rows"], *changes["rows"]]:
        assert row["p50_ms"] > 0, row["name"]
    for way in ("batch door, all at once", "await session.step"):
        (row,) = (row for row in many["rows"] if row["name"] == f"64 sessions, {way}")
        assert "us a session and hop" in row["note"]
    (joins,) = (row for row in changes["rows"] if row["name"] == "64 joins at once")
    assert "times that step; target 20" in joins["note"]
    assert len(profile["facts"]) == 10
    for way in ("mel, back to back", "mel, paced", "mimi, back to back", "mimi, paced"):
        assert times[f"{way}: overhead"] > 0
        assert times[f"{way}: await session.step"] > times[f"{way}: Stream.push"]


def _says_why_not(note: str) -> bool:
    return note.startswith(("not installed", "not compiled", "numba is missing"))


def test_one_of_it_runs_and_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "--quick", "--threads", "1", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    written = json.loads(path.read_text())
    assert path.name == "engine.json" and written["settings"]["quick"]
    check_engine(written)
    said = capfd.readouterr().out
    assert written["tables"][0]["title"] in said and f"wrote {path}" in said


def test_codecs_are_compared_and_timed_on_quiet_cores_and_on_busy_ones(tmp_path: Path) -> None:
    options = ["--quick", "--threads", "1", "--busy", "0,1", "--only", "nano"]
    assert main(["codecs", *options, "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "codecs.json").read_text())
    assert written["settings"]["busy"] == [0, 1]
    quiet, busy = written["tables"]
    assert quiet["title"] == busy["title"] == "nano encode and decode, 12 codebooks, one stream"
    assert (quiet["busy"], busy["busy"]) == (0, 1)
    for table in (quiet, busy):
        rows = {row["name"]: row for row in table["rows"]}
        assert {"streamenc", "streamenc (copy)", "streamenc, compiled, int16"} == rows.keys()
        for row in rows.values():
            assert row["count"] == 2 or _says_why_not(row["note"])
        assert rows["streamenc"]["min_ms"] <= rows["streamenc"]["p50_ms"]


@pytest.mark.slow
def test_all_of_it_runs_and_is_written(tmp_path: Path) -> None:
    names = ("codecs", "loading", "features", "latency", "engine", "sessions", "video")
    command = [*names, "--quick", "--threads", "1", "--out", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "bench", *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert results.keys() == set(names)

    assert {table["busy"] for table in results["codecs"]["tables"]} == {0, 3}
    for table in results["codecs"]["tables"]:
        rows = {row["name"]: row for row in table["rows"]}
        assert rows["streamenc"]["ratio"] == 1
        assert table["noise"]["ratio"] > 0
        for name, row in rows.items():
            # Who is installed was compared with us and timed; the others say why not.
            if row["count"]:
                assert row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
                assert row["agreement"] is None or row["agreement"] >= 0.99
            else:
                assert _says_why_not(row["note"]), (name, row)
        assert table["title"] in done.stdout

    [loading] = results["loading"]["tables"]
    times = {row["name"]: row["p50_ms"] for row in loading["rows"]}
    assert times["streamenc: first time"] > 0 and times["streamenc: later"] > 0

    cost, hour = results["features"]["tables"]
    assert cost["facts"]["window by streamenc, largest difference to transformers"] < 1e-4
    assert all(row["p50_ms"] > 0 for row in (*cost["rows"], *hour["rows"]) if row["count"])
    assert hour["facts"]["state an hour later"] == hour["facts"]["state near the start"]

    for table in results["latency"]["tables"]:
        received, sent = table["facts"]["frames"].split(" of ")
        assert received == sent
        assert table["facts"]["gaps"] == table["facts"]["lost"] == table["facts"]["dropped"] == 0
        whole = {row["name"]: row for row in table["rows"]}["all, to the other process"]
        assert whole["count"] == int(sent)
        assert 0 < whole["p50_ms"] < 10_000

    check_engine(results["engine"])

    spread, at_once = results["sessions"]["tables"]
    for table in (spread, at_once):
        rows = {row["name"]: row for row in table["rows"]}
        for count in (1, 2):
            answered = rows[f"streamenc, {count} sessions"]
            assert answered["count"] == 2 * count and answered["p99_ms"] > 0
            assert rows[f"streamenc, {count} sessions: a tick"]["count"] > 0
        assert table["facts"]["knee of streamenc"].endswith("streams")
    assert any(row["name"].startswith("moshi") for row in spread["rows"])

    assert results["video"]["settings"]["small"] is False
    titles = [table["title"] for table in results["video"]["tables"]]
    for what in ("encode", "decode", "seams", "windows", "memory"):
        assert any(what in title for title in titles), what
        assert what in done.stdout


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert "python -m bench codecs --threads 1" in said
    assert "--child" not in said


@pytest.mark.parametrize("wrong", [["nonsense"], ["codecs", "--threads", "0"], ["--frames", "x"]])
def test_a_wrong_call_is_one(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
