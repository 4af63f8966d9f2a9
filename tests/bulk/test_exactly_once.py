"""Runs that are killed at any moment and started again make the set of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamenc.bulk.manifest import read_manifests
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize
from streamenc.bulk.workers import solo
from tests.support.bulkoutputs import alive, check_manifest, children, end, errors, keys, shards
from tests.support.bulkrun import Run
from tests.support.bulkstub import StubTokenizer, stub_job, write_files
from tests.support.media import write_wav

ITEMS, PER_SHARD = 40, 3
BROKEN = {number: f"broken in {number}" for number in (3, 4, 5, 17, 30)}
SECONDS = 0.03  # of an item
LIMIT_SECONDS = 240
KINDS = ("all", "parent", "one child", "children")

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
pytestmark = linux


def start(run: Run) -> subprocess.Popen[str]:
    return subprocess.Popen(
        run.command(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0
    )


def wait_for(process: subprocess.Popen[str], stage: str) -> None:
    assert process.stdout
    while (line := process.stdout.readline().strip()) != stage:
        assert line, f"ended before {stage}"


def finish(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """Its exit code, and its figures if it came to its end."""
    out, _ = process.communicate(timeout=LIMIT_SECONDS)
    last = out.strip().rpartition("\n")[2]
    return process.returncode, json.loads(last) if last.startswith("{") else {}


CARD = ("README.md", "streamenc.json")


def kill(process: subprocess.Popen[str], kind: str) -> bool:
    """Whether it was still there."""
    workers = children(process.pid)
    if process.poll() is not None:
        return False
    if kind == "all":
        end(process.pid, *workers)
    elif kind == "parent":
        end(process.pid)
    else:
        end(*(workers[:1] if kind == "one child" else workers))
    return True


def killed_at(run: Run, seconds: float, kind: str) -> tuple[bool, bool]:
    """Whether a run was killed, and whether it came to its end."""
    process = start(run)
    try:
        time.sleep(seconds)
        workers = children(process.pid)
        was_there = kill(process, kind)
        code, _ = finish(process)
    except BaseException:
        end(process.pid, *children(process.pid))
        raise
    assert code in (0, -signal.SIGKILL)
    ends_at = time.monotonic() + 5
    while any(map(alive, workers)):  # whose run is gone end by themselves
        assert time.monotonic() < ends_at
        time.sleep(0.02)
    return was_there, code == 0


def prove(run: Run, undisturbed: Path, kills: int, seed: int, most_seconds: float) -> None:
    """Kills and restarts until there were so many kills, and each set was done."""
    chance, output, done = random.Random(seed), Path(run.output), 0
    wanted = shards(undisturbed)
    while done < kills:
        shutil.rmtree(output, ignore_errors=True)
        whole = False
        while not whole and done < kills:
            kind = KINDS[done % len(KINDS)]
            was_there, whole = killed_at(run, chance.uniform(0, most_seconds), kind)
            done += was_there
            if output.exists() and not whole:
                check_manifest(output)
        if not whole:
            assert finish(start(run))[0] == 0
        assert shards(output) == wanted
        assert keys(output) == keys(undisturbed) and errors(output) == errors(undisturbed)
        check_manifest(output)
        assert sorted(read_manifests(output)) == list(range(len(wanted)))
        left = {path.name for path in output.iterdir()}
        assert left == {"data", "errors.jsonl", "manifest.jsonl", "plan", *CARD}
        for name in CARD:
            assert (output / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("in"), ITEMS, BROKEN)


@pytest.fixture(scope="module")
def undisturbed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solo, "Tokenizer", StubTokenizer)
        tokenize(stub_job(folder, PER_SHARD, seconds=SECONDS), output, workers=0)
    assert keys(output) == [f"{n:04d}.wav" for n in range(ITEMS) if n not in BROKEN]
    assert sorted(errors(output)) == [f"{n:04d}.wav" for n in BROKEN]
    return output


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    return Run(
        job=stub_job(folder, PER_SHARD, seconds=SECONDS), output=str(tmp_path / "out"), workers=2
    )


def test_three_kills(run, undisturbed):
    prove(run, undisturbed, kills=3, seed=1, most_seconds=1.0)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thirty_kills(run, undisturbed):
    prove(run, undisturbed, kills=30, seed=2, most_seconds=2.0)


# The third part has errors, which are written before its line; before that are two lines of others.
@pytest.mark.parametrize(("dies_at", "half"), [(1, False), (1, True), (3, False), (4, True)])
def test_killed_between_a_shard_and_its_line(folder, undisturbed, tmp_path, dies_at, half):
    """Its shard has its name already; of its errors all may be written, or half a line."""
    job = stub_job(folder, PER_SHARD)
    run = Run(job=job, output=str(tmp_path / "out"), workers=1, dies_at=dies_at, half=half)
    output = tmp_path / "out"
    assert finish(start(run))[0] == -signal.SIGKILL
    finished = read_manifests(output)
    assert len(finished) == {1: 0, 3: 1, 4: 2}[dies_at]
    assert len(list((output / "data").iterdir())) == len(finished) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solo, "Tokenizer", StubTokenizer)
        figures = tokenize(job, output, workers=0)
    assert figures.parts_before == len(finished)
    check_manifest(output)
    assert shards(output) == shards(undisturbed)
    assert keys(output) == keys(undisturbed) and errors(output) == errors(undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_at_the_edge_of_a_shard(run, undisturbed, number):
    """Also where all processes of a job get it."""
    process, output = start(run), Path(run.output)
    wait_for(process, "working")
    time.sleep(0.15)
    for pid in (*children(process.pid), process.pid):
        os.kill(pid, number)
    code, figures = finish(process)
    assert code == 3 and figures["stopped"] and not figures["deaths"]
    assert 0 < figures["parts_done"] < figures["parts"] == len(shards(undisturbed))
    # What was in hand was finished, and nothing was begun.
    made = shards(output)
    assert len(made) == figures["parts_done"] == len(read_manifests(output))
    assert made == {name: shards(undisturbed)[name] for name in made}
    check_manifest(output)
    assert not (output / "scratch").exists()
    assert finish(start(run))[0] == 0
    assert shards(output) == shards(undisturbed) and errors(output) == errors(undisturbed)


def test_a_second_signal_ends_at_once(tmp_path):
    job = stub_job(write_files(tmp_path / "in", 12), PER_SHARD, seconds=5.0)
    process, output = start(Run(job=job, output=str(tmp_path / "out"))), tmp_path / "out"
    wait_for(process, "working")
    while not list(output.glob("scratch/**/00000?-*")):  # a part is in hand
        time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    code, figures = finish(process)
    assert code == 3 and figures["parts_done"] == 0 and time.monotonic() - began < 4
    assert not (output / "scratch").exists()
    assert not list((output / "data").iterdir()) and not read_manifests(output)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_thirty_kills_with_a_model(tmp_path):
    """nano, and files that FFmpeg decodes."""
    folder = tmp_path / "in"
    folder.mkdir()
    chance = np.random.default_rng(3)
    for number in range(ITEMS):
        path = folder / f"{number:04d}.wav"
        sound = chance.standard_normal((1, 8000 + 1000 * (number % 7))).astype(np.float32) * 0.1
        write_wav(path, sound, 16000)
        if number in BROKEN:
            path.write_bytes(path.read_bytes()[:30])
    job = TokenizeJob(
        input=str(folder),
        input_kind="folder",
        models=(ModelAsk(name="nano"),),
        items_per_shard=PER_SHARD,
    )
    undisturbed = tmp_path / "undisturbed"
    figures = tokenize(job, undisturbed, workers=0)
    assert (figures.items, figures.errors) == (ITEMS - len(BROKEN), len(BROKEN))
    run = Run(job=job, output=str(tmp_path / "out"), workers=2, stub=False)
    began = time.monotonic()
    assert finish(start(run))[0] == 0
    prove(run, undisturbed, kills=30, seed=4, most_seconds=time.monotonic() - began)
