"""What is said of a run: tables, JSON and curves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from bench.quality import report as qualityreport
from bench.quality.measures import Estimate
from bench.quality.report import Book, Pieces, Probe, Report, Result
from streamenc.errors import OutputError


@pytest.fixture
def report() -> Report:
    measures = {"pesq": Estimate(2.345, 2.1, 2.6, 2), "stoi": Estimate(0.91234, 0.9, 0.92, 2)}
    nothing = {"pesq": Estimate(math.nan, math.nan, math.nan, 0, 2), "stoi": measures["stoi"]}
    return Report(
        results=[
            Result("nano", 2, 1.0, 1.0, measures, [{}, {}]),
            Result("Opus", None, 6.0, 6.1, nothing, [{}, {}]),
        ],
        books=[Book("nano", 1, 1024, 800, 31.24, 0.0459)],
        probes=[Probe("nano", 2, "silence", False, -84.8, -98.4, None, 1.5)],
        pieces=[Pieces("nano", 2, 0.02, 4.0, 1.23e-7)],
        notes=["[a] remark"],
    )


def test_the_tables_hold_everything(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    qualityreport.print_report(report)
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for line in (
        "codec codebooks kbit/s PESQ-wb STOI n",
        "nano 2 1.00 2.35 [2.10, 2.60] 0.912 2",
        "Opus 6.10 - 0.912 2",
        "nano 1 31.2 1024 4.6% 800",
        "nano 2 silence -84.8 -98.4 - +1.5 NO",
        "nano 2 20 ms 4.0 1.2e-07",
        "[a] remark",
    ):
        assert line in shown


def test_what_was_not_measured_has_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    qualityreport.print_report(Report(notes=["nothing"]))
    assert capsys.readouterr().out.strip() == "nothing"


def test_json_holds_everything(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    qualityreport.write_json(path, report, {"device": "cpu"}, {"cores": 2})
    plain = json.loads(path.read_text())
    assert [plain[key] for key in ("name", "machine", "settings")] == [
        "quality", {"cores": 2}, {"device": "cpu"}
    ]  # fmt: skip
    assert plain["results"][1]["measures"]["pesq"]["mean"] is None
    assert plain["books"][0]["entries"] == 1024


def test_curves_are_a_image(report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "quality.png"
    qualityreport.draw(report, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="cannot write"):
        qualityreport.draw(report, tmp_path)


def test_a_full_disk_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        qualityreport.write_json(tmp_path / "none" / "x.json", qualityreport.Report(), {}, {})


def test_numbers_that_json_lacks_are_null() -> None:
    assert qualityreport._rounded({"a": (math.nan, 1.23456789, 3), "b": math.inf}) == {
        "a": [None, 1.2346, 3],
        "b": None,
    }
