"""Workers that die, hang or do not load: what becomes of their part, and of the run."""

from __future__ import annotations

import json
import logging
import subprocess
import time
from pathlib import Path

import pytest

from streamenc.bulk.runfigures import RunFigures
from streamenc.bulk.tokenizing import tokenize
from streamenc.bulk.workers import partprocess, solo, workforce
from streamenc.errors import CheckpointError, OutputError, StreamencError
from tests.support.bulkchild import COMMAND
from tests.support.bulkoutputs import errors, keys, shards
from tests.support.bulkstub import StubTokenizer, stub_job, write_files

assert subprocess  # each test starts processes


@pytest.fixture(autouse=True)
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partprocess, "COMMAND", COMMAND)
    monkeypatch.setattr(solo, "Tokenizer", StubTokenizer)


BAD = {"0004.wav": "wing", "0011.wav": "leg"}


def reasons(output: Path) -> dict[str, str]:
    return {key: line["reason"] for key, line in errors(output).items()}


def test_any_number_of_workers_makes_the_same_bytes(tmp_path):
    folder = write_files(tmp_path / "in", 20, {4: "broken wing", 11: "broken leg"})
    seen, said = [], []
    for workers in (0, 1, 3):
        output = tmp_path / f"out{workers}"
        figures = tokenize(stub_job(folder, seconds=0.002), output, workers=workers)
        assert (figures.parts_done, figures.items, figures.errors) == (7, 18, 2)
        assert figures.kinds == {"MediaError": 2} and figures.peak_bytes > 0
        seen.append(shards(output))
        said.append(reasons(output))
    assert seen[0] == seen[1] == seen[2]
    assert (
        said
        == [
            {
                f"00{n}.wav": f"{folder}/00{n}.wav: {what}"
                for n, what in (("04", "wing"), ("11", "leg"))
            }
        ]
        * 3
    )


@pytest.mark.parametrize("ahead", [1, 4])
def test_an_item_of_which_a_process_dies_twice_is_skipped(tmp_path, ahead, caplog):
    """Also where others were in hand with it, which are then taken one by one."""
    folder = write_files(tmp_path / "in", 9, {3: "die SIGSEGV", 7: "raise the alarm"})
    figures = tokenize(stub_job(folder, 5, ahead=ahead), tmp_path / "out", workers=2)
    assert figures.deaths == 4 and figures.parts_done == 2
    assert (figures.items, figures.errors) == (7, 2)
    assert reasons(tmp_path / "out") == {
        "0003.wav": "its process was ended by SIGSEGV, for the second time",
        "0007.wav": "its process ended with exit code 1: RuntimeError: the alarm, for the second "
        "time",
    }
    assert keys(tmp_path / "out") == [f"{n:04d}.wav" for n in range(9) if n not in (3, 7)]
    assert "Traceback" in caplog.text and "another takes its place" in caplog.text


def test_an_item_of_which_nothing_comes_is_skipped(tmp_path):
    folder = write_files(tmp_path / "in", 4, {2: "hang"})
    tokenize(stub_job(folder), tmp_path / "out", workers=1, item_timeout_seconds=2.0)
    assert reasons(tmp_path / "out") == {
        "0002.wav": "nothing came of it for 2 s, for the second time"
    }
    assert keys(tmp_path / "out") == ["0000.wav", "0001.wav", "0003.wav"]


def test_an_item_that_takes_long_is_waited_for(tmp_path):
    folder = write_files(tmp_path / "in", 3)
    job = stub_job(folder, seconds=1.0)
    figures = tokenize(job, tmp_path / "out", workers=1, item_timeout_seconds=2.5)
    assert figures.items == 3 and not figures.deaths


def test_a_model_that_does_not_load_is_one_error(tmp_path, caplog):
    folder = write_files(tmp_path / "in", 3)
    with pytest.raises(CheckpointError, match=r"^no weights in 'x'$"):
        tokenize(stub_job(folder, fails="no weights in 'x'"), tmp_path / "out", workers=3)
    assert not caplog.records


def test_workers_that_die_before_they_load_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(partprocess, "COMMAND", ("/bin/sh", "-c", "echo out of luck >&2; exit 9"))
    folder = write_files(tmp_path / "in", 3)
    with pytest.raises(StreamencError, match="3 workers died.*loaded the models.*code 9: out of"):
        tokenize(stub_job(folder), tmp_path / "out", workers=1)


def test_many_deaths_in_a_row_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(workforce, "MOST_DEATHS", 3)
    folder = write_files(tmp_path / "in", 3, dict.fromkeys(range(3), "die SIGKILL"))
    with pytest.raises(StreamencError, match=r"3 workers died.*part 0.*SIGKILL \(did the memory"):
        tokenize(stub_job(folder), tmp_path / "out", workers=1)
    assert not list((tmp_path / "out" / "data").iterdir())
    assert not (tmp_path / "out" / "scratch").exists()


def test_what_a_worker_writes_is_passed_on_and_bounded(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        partprocess,
        "COMMAND",
        (
            "/bin/sh",
            "-c",
            'for i in $(seq 300); do echo line $i >&2; done; exec "$@"',
            "",
            *COMMAND,
        ),
    )
    caplog.set_level(logging.WARNING)
    folder = write_files(tmp_path / "in", 3)
    assert tokenize(stub_job(folder), tmp_path / "out", workers=1).items == 3
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "worker 0: line 1" and len(said) == 101
    assert said[-1] == "worker 0: says more, which is left out"


def test_a_worker_that_cannot_write_ends_the_run(tmp_path, monkeypatch):
    folder = write_files(tmp_path / "in", 6)
    tokenize(stub_job(folder), tmp_path / "out", workers=1)
    output = tmp_path / "other"
    output.mkdir()
    (output / "data").symlink_to("/proc")  # a folder that nothing can be written to
    (output / "plan").symlink_to(tmp_path / "out" / "plan")
    with pytest.raises(OutputError, match="cannot write"):
        tokenize(stub_job(folder), output, workers=2)
    assert (output / "manifest.jsonl").read_bytes() == b""


def test_figures_come_often_and_say_how_long_it_takes_yet(tmp_path):
    folder = write_files(tmp_path / "in", 30)
    seen: list[RunFigures] = []
    began = time.monotonic()
    last = tokenize(stub_job(folder, seconds=0.1), tmp_path / "out", workers=1, tell=seen.append)
    assert list(dict.fromkeys(figures.stage for figures in seen)) == [
        "loading",
        "planning",
        "working",
        "done",
    ]
    assert len(seen) < 4 * (time.monotonic() - began) + 6
    late = seen[-3]
    assert late.eta_seconds is not None and 0 < late.eta_seconds < 3
    assert last.bound_by == "encoding" and last.spent["encoding"] == pytest.approx(3, abs=0.01)
    assert last.parts_items == last.items == 30 and last.media_seconds == last.set_seconds > 0
    assert json.loads(json.dumps(last.as_json()))["times_real_time"] > 0
