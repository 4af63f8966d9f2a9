"""The command: whole runs on a small model, and what its parts make of signals that are known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.quality import recognition
from bench.quality import run as quality
from bench.quality.conditions import Condition, Subject
from bench.quality.measures import RATE, Audio, Clip
from bench.quality.report import MEASURES
from streamenc.errors import InputError


def test_use_of_codebooks() -> None:
    spec = SimpleNamespace(codebook_size=8)
    codes = torch.tensor([[[0, 1, 2, 3] * 2, [5] * 8, [0, 0, 0, 0, 0, 0, 1, 1]]])
    known = SimpleNamespace(name="m", codec=SimpleNamespace(spec=spec), codes=lambda clip: codes)
    books = quality.codebook_use(known, [None, None])  # type: ignore[arg-type, list-item]
    assert [book.perplexity for book in books] == pytest.approx([4, 1, 1.7547654])
    assert [book.used for book in books] == [4 / 8, 1 / 8, 2 / 8]
    assert [(book.book, book.frames) for book in books] == [(1, 16), (2, 16), (3, 16)]


@pytest.mark.parametrize("rate", [16_000, 24_000, 22_050])
def test_probes_have_the_levels_that_they_name(rate: int) -> None:
    made = quality.probe_signals(rate)
    for signal in made.values():
        assert signal.dtype == np.float32 and signal.shape == (2 * rate,)
        assert np.abs(signal).max() <= 1
    levels = {name: quality._levels_db(signal) for name, signal in made.items()}
    assert levels["silence"] == (-120, -120)
    assert levels["white noise, -20 dBFS"][1] == pytest.approx(-20, abs=0.01)
    assert levels["square wave, 1 kHz, 0 dBFS"] == (0, 0)
    for name in ("chord, 0 dBFS", "clicks, 0 dBFS"):
        assert levels[name][0] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("gain", "change_db"), [(1.0, 0.0), (0.5, -6.02), (math.nan, math.nan)])
def test_a_probe_tells_what_changed(gain: float, change_db: float) -> None:
    """Through a codec that only changes the volume."""
    codec = SimpleNamespace(sample_rate=RATE)
    known = SimpleNamespace(
        name="m",
        codec=codec,
        encode=lambda signal: torch.from_numpy(signal)[None, None],
        decode=lambda codes: gain * codes[0, 0].numpy(),
    )
    probes = {p.signal: p for p in quality.probe(known, [1])}  # type: ignore[arg-type]
    assert probes["silence"].peak_change_db is None
    for name, probe in probes.items():
        assert probe.finite == math.isfinite(gain)
        if name != "silence" and probe.finite:
            assert probe.peak_change_db == pytest.approx(change_db, abs=0.01)
            assert probe.rms_change_db == pytest.approx(change_db, abs=0.01)


def test_pieces_are_the_whole(subject: Subject, speech: Audio) -> None:
    clips = [Clip("short", speech[:RATE], RATE), Clip("odd", speech[: RATE // 3 + 5], RATE)]
    compared = quality.compare_pieces(subject, clips, 6)
    assert compared.piece_seconds == 0.02
    assert compared.seconds == pytest.approx(4 / 3, abs=0.01)
    # Samples of this random model reach 10.
    assert compared.largest_difference < 1e-3


def test_clicks_between_pieces_are_seen(
    subject: Subject, speech: Audio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def each_alone(self: Subject, codes: torch.Tensor, frames: int) -> Audio:
        return np.concatenate([self.decode(piece) for piece in torch.split(codes, frames, -1)])

    clips = [Clip("short", speech[: RATE // 4], RATE)]
    monkeypatch.setattr(Subject, "decode_pieces", each_alone)
    assert quality.compare_pieces(subject, clips, 6).largest_difference > 0.1
    monkeypatch.setattr(Subject, "decode_pieces", lambda *_: np.zeros(5, np.float32))
    assert quality.compare_pieces(subject, clips, 6).largest_difference == math.inf


def test_a_codec_that_blows_up_is_named(speech: Audio) -> None:
    broken = Condition("broken", 6, None, lambda clip: (clip.audio * np.inf, 6))
    with pytest.raises(InputError, match=r"broken, 6 kbit/s, speech: .*not finite"):
        quality.Bench([Clip("speech", np.abs(speech) + 0.1, RATE)]).evaluate(broken)


@pytest.mark.usefixtures("pesq_and_stoi")
def test_remarks(speech: Audio) -> None:
    """On utterances without speech, a rate that was not kept, and a lag."""
    late = np.pad(speech, (80, 0))
    clips = [Clip("speech", speech, RATE), Clip("silence", np.zeros_like(speech), RATE)]
    condition = Condition("late", 6, None, lambda clip: (late, 7.0))
    result = quality.Bench(clips).evaluate(condition)
    assert (result.measures["pesq"].count, result.measures["pesq"].skipped) == (1, 1)
    result = replace(result, utterances=result.utterances[:1])
    skipped, *_, rate, lag = quality._remarks("late", result)
    assert "1 utterances have no PESQ-wb" in skipped
    assert "7.00 kbit/s" in rate
    assert "80 samples later" in lag


@pytest.mark.usefixtures("pesq_and_stoi", "visqol", "jiwer")
def test_the_command_measures_everything(
    folder: Path,
    model: Path,
    whisper: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(recognition, "WHISPER_TOKENS", 3)
    monkeypatch.setattr(quality, "PIECED_SECONDS", 0.5)
    monkeypatch.setattr(quality, "PROBE_SECONDS", 0.25)
    out, curve = tmp_path / "quality.json", tmp_path / "quality.png"
    options = ["--speech", folder, "--seconds", 1, "--models", model, "--codebooks", 6, 2, 8]
    options += ["--opus", 16, 6, "--whisper", whisper, "--out", out, "--curve", curve]
    assert quality.main([str(option) for option in options]) == 0

    shown = capsys.readouterr()
    for title in ("Quality", "Use of codebooks", "What is no speech", "Decoded in pieces"):
        assert title in shown.out
    assert "has 6 codebooks: left out are 8" in " ".join(shown.out.split())
    assert "Opus, 6 kbit/s: 2 utterances" in shown.err
    assert curve.read_bytes().startswith(b"\x89PNG")

    plain = json.loads(out.read_text())
    assert plain["machine"]["versions"]["pesq"] and plain["settings"]["device"] == "cpu"
    conditions = [(row["codec"], row["codebooks"], row["kbps"]) for row in plain["results"]]
    assert conditions == [
        (str(model), 2, 12), (str(model), 6, 36), ("Opus", None, 6), ("Opus", None, 16)
    ]  # fmt: skip
    for row in plain["results"]:
        assert row["measures"].keys() == MEASURES.keys()
        assert [utterance["clip"] for utterance in row["utterances"]] == ["a.wav", "speaker/b.flac"]
        mean = np.mean([utterance["pesq"] for utterance in row["utterances"]])
        assert row["measures"]["pesq"]["mean"] == pytest.approx(mean, rel=1e-4)
    assert len(plain["books"]) == 6
    assert {probe["codebooks"] for probe in plain["probes"]} == {2, 6}
    assert all(probe["finite"] for probe in plain["probes"])
    assert plain["pieces"][0]["largest_difference"] < 1e-3


@pytest.mark.usefixtures("pesq_and_stoi")
def test_opus_alone_says_what_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--speech", str(folder), "--seconds", "1", "--limit", "1", "--no-visqol"]
    assert quality.main([*options, "--models", "--opus", "16"]) == 0
    shown = capsys.readouterr().out
    assert "WER is left out: it needs --whisper FOLDER" in shown
    assert "ViSQOL is left out: --no-visqol" in shown
    assert "Use of codebooks" not in shown


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ([], "LibriSpeech"),
        (["--speech", ".", "--models", "--opus"], "nothing to measure"),
        (["--speech", ".", "--codebooks", "0"], "from 1 up"),
        (["--speech", ".", "--opus", "2"], "6 to 256 kbit/s"),
        (["--speech", ".", "--seconds", "31"], "0.5 to 30 seconds"),
    ],
)
def test_a_wrong_call_is_one(
    options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        quality.main(options)
    assert stopped.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.usefixtures("pesq_and_stoi", "jiwer")
@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--out", "nowhere/x.json"], "cannot write nowhere/x.json"),
        (["--curve", "."], "cannot write ."),
        (["--whisper", "."], "no config.json"),
        (["--codebooks", "7", "8"], "has 6 codebooks; got --codebooks 7 8"),
    ],
)
def test_a_failure_is_one_line(
    options: list[str], why: str, folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    always = ["--speech", str(folder), "--models", str(model), "--no-visqol"]
    assert quality.main([*always, *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert why in error


@pytest.mark.usefixtures("pesq_and_stoi")
@pytest.mark.parametrize(("ending", "status"), [(KeyboardInterrupt, 130), (InputError, 1)])
def test_a_run_that_ends_early_prints_what_is_complete(
    ending: type[BaseException],
    status: int,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = quality.opus

    def stopped(clip: Clip, kbps: float) -> tuple[Audio, float]:
        if kbps == 16:
            raise ending("not finite")
        return whole(clip, kbps)

    monkeypatch.setattr(quality, "opus", stopped)
    out = tmp_path / "x.json"
    options = ["--speech", str(folder), "--seconds", "1", "--no-visqol", "--out", str(out)]
    assert quality.main([*options, "--models", "--opus", "8", "16"]) == status
    shown = capsys.readouterr()
    assert " 8.00 " in shown.out and "16.00" not in shown.out
    assert "nothing is written" in shown.err
    assert shown.err.endswith("error: not finite\n") == (ending is InputError)
    assert not out.exists()
