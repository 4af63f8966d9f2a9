"""`python -m bench.quality.whisper` at its smallest, on random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.quality import recognition
from bench.quality import whisper as bench

pytest.importorskip("transformers")


@pytest.mark.usefixtures("jiwer")
def test_all_of_it_is_measured(
    whisper: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(recognition, "WHISPER_TOKENS", 4)
    out = tmp_path / "results" / "whisper.json"
    arguments = ["--speech", str(folder), "--whisper", str(whisper), "--out", str(out)]
    assert bench.main([*arguments, "--limit", "1", "--rounds", "2"]) == 0
    written = json.loads(out.read_text())
    points = {point["name"]: point for point in written["points"]}
    assert len(points) == len(bench.CONDITIONS) + 2
    assert written["settings"]["utterances"] == 1
    printed = capsys.readouterr().out
    for name, point in points.items():
        assert name in printed
        assert len(point["cosine"]) == 2 and point["ms"] > 0
        assert all(0.5 < cosine < 1.0001 for cosine in point["cosine"])
    whole = points["window, 1 s, all its states"]
    assert whole["wer"] == 0 and min(whole["cosine"]) > 0.99999
    assert points["chunked, 1 s + 2 s ahead"]["latency_seconds"] == pytest.approx(3.0126, abs=1e-3)
    assert {row["name"] for row in written["tables"][0]["rows"]} == points.keys() - {
        "offline, at the end"
    }


def test_a_folder_without_speech(whisper: Path, tmp_path: Path) -> None:
    assert bench.main(["--speech", str(tmp_path), "--whisper", str(whisper)]) == 1
