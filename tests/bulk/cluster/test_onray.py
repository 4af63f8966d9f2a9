"""A cluster of three nodes makes the same set, also where one of them is lost in the middle."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import streamenc
from streamenc.bulk.cluster import tokenize_on_ray
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize
from streamenc.errors import UsageError
from tests.support.media import write_wav
from tests.support.raybulk import BulkCluster
from tests.support.raycluster import needs_ray

__all__ = ["subprocess"]  # which RayCluster starts

RATE = 16_000
PARTS = 8
ON_CLUSTER = [needs_ray, pytest.mark.slow, pytest.mark.timeout(240)]


def on_cluster(test: Any) -> Any:
    for mark in ON_CLUSTER:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def cluster() -> Iterator[BulkCluster]:
    with BulkCluster(3) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute each, of which one is broken: a part is in hand for some time."""
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(7).uniform(-0.3, 0.3, (1, 60 * RATE))
    for number in range(2):
        write_wav(folder / f"0{number}.wav", noise[:, number * RATE :], RATE)
    for number in range(2, 2 * PARTS - 1):
        os.link(folder / f"0{number % 2}.wav", folder / f"{number:02d}.wav")
    (folder / f"{2 * PARTS - 1}.wav").write_bytes(b"no sound")
    return folder


@pytest.fixture(scope="module")
def job(clips: Path) -> dict[str, Any]:
    return {"input": str(clips), "models": [{"name": "nano"}], "items_per_shard": 2}


@pytest.fixture(scope="module")
def wanted(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("wanted")
    local = TokenizeJob(input=str(clips), models=(ModelAsk(name="nano"),), items_per_shard=2)
    tokenize(local, output, workers=0)
    return contents(output)


def contents(output: Path) -> dict[str, Any]:
    """What a set holds: shards by name, and the lines of the manifest and of the errors."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (output / "data").iterdir()}
    for name in ("manifest.jsonl", "errors.jsonl"):
        found[name] = sorted((output / name).read_text().splitlines())
    assert not (output / "scratch").exists()
    return found


@on_cluster
def test_the_same_bytes(
    cluster: BulkCluster, job: dict[str, Any], wanted: dict[str, Any], tmp_path: Path
) -> None:
    figures = cluster.tokenize(job, tmp_path)
    assert contents(tmp_path) == wanted
    assert (figures["parts_done"], figures["errors"], figures["deaths"]) == (PARTS, 1, 0)
    assert figures["workers"] == 3 and not figures["stopped"]
    assert figures["spent"]["encoding"] > 0 and figures["peak_bytes"] > 0
    again = cluster.tokenize(job, tmp_path)
    assert (again["parts_done"], again["parts_before"]) == (0, PARTS)
    assert contents(tmp_path) == wanted


@on_cluster
@pytest.mark.parametrize("lose", ["node", "worker"])
def test_what_is_lost_is_done_again(
    cluster: BulkCluster, job: dict[str, Any], wanted: dict[str, Any], tmp_path: Path, lose: str
) -> None:
    figures = cluster.tokenize(job, tmp_path, lose=lose)
    assert contents(tmp_path) == wanted
    assert figures["parts_done"] == PARTS
    assert figures["deaths"] <= 1 if lose == "node" else figures["deaths"] == 1


@on_cluster
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_is_asked_to_stop_is_gone_on_with(
    cluster: BulkCluster, job: dict[str, Any], wanted: dict[str, Any], tmp_path: Path, times: int
) -> None:
    figures = cluster.tokenize(job, tmp_path, stop=times)
    assert figures["stopped"] and 0 < figures["parts_done"] < PARTS
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == figures["parts_done"]
    cluster.tokenize(job, tmp_path)
    assert contents(tmp_path) == wanted


@on_cluster
def test_what_cannot_be_is_said_once(
    cluster: BulkCluster, job: dict[str, Any], tmp_path: Path
) -> None:
    made = cluster.tokenize(job, tmp_path / "hidden", hide=True)
    assert made["raised"].startswith("UsageError: the machine ")
    assert "does not see '/nowhere'" in made["raised"]
    unknown = {**job, "models": [{"name": str(tmp_path / "weights")}]}
    made = cluster.tokenize(unknown, tmp_path / "unknown")
    assert made["raised"].startswith("CheckpointError: ")
    made = cluster.tokenize({**job, "input": str(tmp_path / "nothing")}, tmp_path / "nothing")
    assert made["raised"].startswith("UsageError: ")


@on_cluster
def test_batches_of_a_dataset(cluster: BulkCluster, clips: Path, tmp_path: Path) -> None:
    rows = [
        {"audio": str(clips / name), "number": n} for n, name in enumerate(["00.wav", "15.wav"])
    ]
    cluster.encode([*rows, *({**row, "number": row["number"] + 2} for row in rows)], tmp_path)
    table = pq.read_table(tmp_path).sort_by("number")
    codec = streamenc.load("nano", part="encoder", backend="torch")
    codes = codec.encode(streamenc.read(clips / "00.wav", channels=1).data)[0]
    for good, bad in ((0, 1), (2, 3)):
        assert np.array_equal(table["codes"][good].as_py(), codes)
        assert table["error"][good].as_py() is None
        assert table["codes"][bad].as_py() is None
        assert "knows no such format" in table["error"][bad].as_py()
    assert table.schema.field("codes").type.value_type.value_type == "uint16"


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.delitem(__import__("sys").modules, "streamenc.bulk.cluster.raycrew", raising=False)
    job = TokenizeJob(input=str(tmp_path), models=(ModelAsk(name="nano"),))
    with pytest.raises(UsageError, match=r"pip install 'streamenc\[ray\]'"):
        tokenize_on_ray(job, tmp_path / "set")
