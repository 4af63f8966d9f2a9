"""The command tokenize: what it says, writes and exits with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

import streamenc
from streamenc.bulk.cluster import onray
from streamenc.bulk.encoding.modelpass import ModelPass
from streamenc.bulk.runfigures import RunFigures, RunTally
from streamenc.bulk.tokenizejob import TokenizeJob
from streamenc.cli import show
from tests.support import zoo
from tests.support.program import Done

Call = Callable[..., Done]
RATE = 16_000


def sound(path: Path, seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(RATE * seconds)).astype(np.float32)
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return samples


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    folder = tmp_path / "talks"
    folder.mkdir()
    for number in range(5):
        sound(folder / f"{number}.wav", 0.3 + 0.1 * number, number)
    (folder / "note.wav").write_text("this is no sound")
    return folder


def test_a_folder_becomes_a_set(call: Call, talks: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    how = ("-m", "nano", "-n", "4", "--items", "4", "--workers", "0")
    done = call("tokenize", talks, tmp_path / "set", *how, "--stats", stats)
    assert done.code == 0 and done.out == ""
    assert "2 of 2 shards, 5 items" in done.error and "times real time" in done.error
    assert "1 items are none" in done.error and "errors.jsonl" in done.error
    rows = pq.read_table(tmp_path / "set" / "data").to_pylist()
    codec = streamenc.load("nano", backend="torch")
    for row in rows:
        samples = streamenc.read(talks / row["key"]).data
        wanted = codec.encode(samples[None], codebooks=4)[0].numpy()
        assert np.array_equal(row["codes"], wanted)
    figures = json.loads(stats.read_text())
    assert figures["items"] == 5 and figures["errors"] == 1 and figures["times_real_time"] > 0


def test_it_goes_on_and_refuses_another_job(call: Call, talks: Path, tmp_path: Path) -> None:
    how = ("tokenize", talks, tmp_path / "set", "-m", "nano", "--items", "2", "--workers", "0")
    assert call(*how).code == 0
    before = (tmp_path / "set" / "data" / "000000.parquet").stat().st_mtime_ns
    again = call(*how)
    assert again.code == 0 and "3 of 3 shards" in again.error
    assert (tmp_path / "set" / "data" / "000000.parquet").stat().st_mtime_ns == before
    other = call(*how, "-n", "2")
    assert other.code == 2 and "another job" in other.error and "codebooks" in other.error


def test_too_many_errors_end_it(call: Call, talks: Path, tmp_path: Path) -> None:
    how = ("tokenize", talks, tmp_path / "set", "-m", "nano", "--workers", "0")
    done = call(*how, "--max-error-rate", "0.1")
    assert done.code == 2 and "1 of 6 items" in done.error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "nano", "-m", "nano"), "given twice"),
        (("-m", "nano", "-m", "mel", "--set", "a=1"), "--set is of one model"),
        (("-m", "nano", "--shard", "4/4"), "--shard is I/N"),
        (("-m", "nano", "--shard", "a"), "--shard is I/N"),
        (("-m", "nano", "--device", "cuda:77", "--workers", "0"), "cuda"),
        (("-m", "nano", "--layout", "sideways"), "layout"),
        (("-m", "nano", "--format", "csv"), "csv"),
        (("-m", "nano", "--kind", "cassette"), "cassette"),
        (("-m", "nano", "-n", "99"), "codebooks"),
        (("-m", "nano", "--input-set", "tune=2"), "'tune' for a data set of kind 'folder'"),
        (("-m", "nano", "--input-set", "a=1", "--kind", "huggingface"), "column, config, split"),
        (("-m", "nano", "--ray", "auto", "--device", "cuda:1"), "--ray gives workers a GPU each"),
        (("-m", "mel", "--dtype", "int8"), "dtype"),
        (
            (
                "-m",
                "nowhere/at/all.safetensors",
            ),
            "nowhere",
        ),
    ],
)
def test_what_is_refused(
    call: Call, talks: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = call("tokenize", talks, tmp_path / "set", "--workers", "0", *arguments)
    assert done.code in (1, 2) and message in done.error
    assert not list((tmp_path / "set").glob("data/*"))


def test_what_differs_is_told_and_fails(
    call: Call,
    talks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    how = ("-m", "nano", "--items", "2", "--workers", "0", "--verify", "1")
    done = call("tokenize", talks, tmp_path / "right", *how)
    assert done.code == 0 and "5 items were encoded twice; 0 of them differed" in done.error
    push = ModelPass.push

    def lossy(self: ModelPass, data: np.ndarray, anew: bool = False) -> None:
        push(self, data[:, 320:] if data.shape[1] == round(0.6 * RATE) else data, anew)

    monkeypatch.setattr(ModelPass, "push", lossy)
    done = call("tokenize", talks, tmp_path / "set", *how, "--stats", tmp_path / "stats.json")
    assert done.code == 1 and "5 items were encoded twice; 1 of them differed" in done.error
    assert "3.wav has other tokens" in caplog.text and caplog.text.count("other tokens") == 1
    rows = pq.read_table(tmp_path / "set" / "data").to_pylist()
    assert [row["key"] for row in rows if "differs" in row["flags"]] == ["3.wav"]
    figures = json.loads((tmp_path / "stats.json").read_text())
    assert (figures["verified"], figures["differing"]) == (5, 1)
    # Whoever goes on with it learns it too, though nothing is left to do.
    again = call("tokenize", talks, tmp_path / "set", *how)
    assert again.code == 1 and "1 of them differed" in again.error


@pytest.mark.filterwarnings("ignore")  # of what saves the model
def test_models_of_one_name(call: Call, talks: Path, tmp_path: Path) -> None:
    models = [tmp_path / name / "model.safetensors" for name in "ab"]
    for number, model in enumerate(models):
        torch.manual_seed(number)
        zoo.row("mimi").save(model.parent)
    how = [word for model in models for word in ("-m", model)]
    assert call("tokenize", talks, tmp_path / "set", *how, "--workers", "0").code == 0
    rows = pq.read_table(tmp_path / "set" / "data").to_pylist()
    for model, column in zip(models, ("a_codes", "b_codes"), strict=True):
        codec = streamenc.load(str(model), backend="torch")
        samples = streamenc.read(talks / "4.wav", sample_rate=codec.sample_rate).data
        assert np.array_equal(rows[4][column], codec.encode(samples[None])[0].numpy())


def test_a_log_gets_lines(
    call: Call, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "SAY_SECONDS", 0.0)
    how = ("-m", "nano", "--items", "1", "--workers", "0")
    done = call("tokenize", talks, tmp_path / "set", *how)
    assert "0 of 6 shards" in done.error
    assert call("tokenize", talks, tmp_path / "other", *how, "--quiet").error == ""


def test_a_cluster_gets_the_same_job(
    call: Call, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def on_ray(job: TokenizeJob, output: Path, **how: Any) -> RunFigures:
        asked.update(how, models=[ask.name for ask in job.models], output=output)
        return RunTally(how["concurrency"]).figures()

    monkeypatch.setattr(onray, "tokenize_on_ray", on_ray)
    how = ("-m", "nano", "--ray", "10.0.0.1:6379", "--workers", "3", "--device", "cuda")
    assert call("tokenize", talks, tmp_path / "set", *how, "--shard", "1/2").code == 0
    assert asked["address"] == "10.0.0.1:6379" and asked["gpus"] == 1
    assert asked["concurrency"] == 3 and asked["share"] == (1, 2)
    assert asked["models"] == ["nano"] and asked["output"] == tmp_path / "set"


@pytest.mark.process
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_ends_it_at_a_shards_edge(tmp_path: Path, name: str) -> None:
    talks = tmp_path / "talks"
    talks.mkdir()
    for number in range(16):
        sound(talks / f"{number:02d}.wav", 4.0, number)
    how = ["tokenize", talks, tmp_path / "set", "-m", "nano", "--items", "1", "--workers", "1"]
    program = [sys.executable, "-m", "streamenc", *map(str, how)]
    with subprocess.Popen(program, stderr=subprocess.PIPE, text=True) as process:
        manifest = tmp_path / "set" / "manifest.jsonl"
        while not (manifest.exists() and manifest.stat().st_size):
            assert process.poll() is None
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same again" in said
    done = len(manifest.read_text().splitlines())
    assert 0 < done < 16
    assert len(list((tmp_path / "set" / "data").iterdir())) == done
    assert not list((tmp_path / "set" / "scratch").glob("*"))
    assert subprocess.run(program, capture_output=True, check=False).returncode == 0
    assert len(manifest.read_text().splitlines()) == 16
