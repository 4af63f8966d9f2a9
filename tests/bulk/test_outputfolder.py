"""Where a set may be made, and disks that take no more of it."""

from __future__ import annotations

import os
import subprocess

import pytest

from streamenc.bulk.items import Fault
from streamenc.bulk.outputfolder import check_place, scratch_folder
from streamenc.bulk.tokenizing import tokenize
from streamenc.bulk.workers import solo
from streamenc.errors import OutputError, UsageError
from tests.support.bulkoutputs import check_manifest, errors, keys, shards
from tests.support.bulkstub import StubTokenizer, stub_job, write_files
from tests.support.disk import fill, tiny_disk


@pytest.fixture(autouse=True)
def stubs(monkeypatch):
    monkeypatch.setattr(solo, "Tokenizer", StubTokenizer)


@pytest.mark.parametrize("output", ["in", "in/tokens", "in/deep/tokens", "link/tokens"])
def test_never_in_the_input(tmp_path, output):
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to("in")
    for address in (str(tmp_path / "in"), str(tmp_path / "in" / "**" / "*.wav")):
        with pytest.raises(UsageError, match="is in INPUT"):
            check_place(tmp_path / output, address)
    assert not (tmp_path / "in" / "tokens").exists()


def test_beside_files_that_a_pattern_finds(tmp_path):
    check_place(tmp_path / "tokens", str(tmp_path / "*.wav"))
    check_place(tmp_path / "others", "s3://bucket/data")


def test_never_among_other_data(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "manifest.jsonl").touch()
    check_place(tmp_path, "in")
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"holds 'thesis.tex' and no plan"):
        check_place(tmp_path, "in")


def test_scratch_is_emptied_of_what_was_killed_and_not_of_others(tmp_path):
    for share in ("00000-of-00002", "00001-of-00002"):
        (tmp_path / "scratch" / share / "000000-x").mkdir(parents=True)
    with scratch_folder(tmp_path, (0, 2)) as scratch:
        assert not list(scratch.iterdir())
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["00001-of-00002"]


def test_a_disk_that_fills_up(tmp_path):
    """What is finished by then stays, and the next run does the rest."""
    job = stub_job(write_files(tmp_path / "in", 30, {4: "broken wing"}))
    tokenize(job, tmp_path / "undisturbed", workers=0)
    with tiny_disk(tmp_path / "disk", 512) as disk:
        output = disk / "out"
        filled = []

        def tell(figures):
            if figures.parts_done >= 3 and not filled:
                fill(disk)
                filled.append(figures.parts_done)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("streamenc.bulk.tokenizing.TELL_SECONDS", 0.0)
            with pytest.raises(OutputError, match="the disk is full"):
                tokenize(job, output, workers=0, tell=tell)
        assert filled == [3]
        check_manifest(output)
        assert not (output / "scratch").exists()
        (disk / "filler").unlink()
        figures = tokenize(job, output, workers=0)
        assert figures.parts_before >= 3 and figures.parts_done == 10 - figures.parts_before
        assert shards(output) == shards(tmp_path / "undisturbed")
        assert keys(output) == keys(tmp_path / "undisturbed")
        assert errors(output) == errors(tmp_path / "undisturbed")


def test_a_disk_that_takes_nothing(tmp_path):
    job = stub_job(write_files(tmp_path / "in", 3))
    with tiny_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", os.fspath(disk)], check=True)
        with pytest.raises(OutputError, match="read-only; choose another place"):
            tokenize(job, disk / "out", workers=0)


def test_what_the_disk_does_ends_the_run(tmp_path, monkeypatch):
    def full(self, item):
        return Fault("a", "b", "cannot write 'c': the disk is full", "OutputError")

    monkeypatch.setattr(StubTokenizer, "_row", full)
    with pytest.raises(OutputError, match="the disk is full"):
        tokenize(stub_job(write_files(tmp_path / "in", 3)), tmp_path / "out", workers=0)
