"""The manifest: whole lines alone, errors of finished parts alone, one run at a time."""

from __future__ import annotations

import json

import pytest

from streamenc.bulk import manifest as module
from streamenc.bulk.items import Fault
from streamenc.bulk.manifest import Finished, Manifest, read_errors, read_manifests
from streamenc.errors import OutputError, UsageError


def line(part: int) -> Finished:
    return Finished(
        part=part, files=(), source="in", items=2, errors=1, seconds=1.5, frames=(3,)
    )  # fmt: skip


def fault(part: int) -> Fault:
    return Fault(f"key{part}", "in", "no sound", "MediaError")


def filled(output, parts, share=(0, 1)):
    manifest = Manifest(output, share)
    for part in parts:
        manifest.add(line(part), [fault(part)])
    manifest.close()


def said(output):
    text = (output / "errors.jsonl").read_text()
    return [json.loads(each)["key"] for each in text.splitlines()]


def test_what_was_added_is_there(tmp_path):
    filled(tmp_path, [2, 0])
    assert read_manifests(tmp_path) == {0: line(0), 2: line(2)}
    manifest = Manifest(tmp_path)
    assert manifest.finished == {0: line(0), 2: line(2)}
    manifest.close()
    assert said(tmp_path) == ["key2", "key0"]
    assert [error.key for error in read_errors(tmp_path)] == ["key2", "key0"]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_half_a_line_is_none(tmp_path, cut):
    filled(tmp_path, [0, 1])
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert list(read_manifests(tmp_path)) == [0]
    assert [error.part for error in read_errors(tmp_path)] == [0]
    filled(tmp_path, [1])
    assert list(read_manifests(tmp_path)) == [0, 1]
    assert said(tmp_path) == ["key0", "key1"]


def test_half_an_error_is_none(tmp_path):
    filled(tmp_path, [0])
    path = tmp_path / "errors.jsonl"
    path.write_bytes(path.read_bytes() + b'{"part":0,"ke')
    assert [error.key for error in read_errors(tmp_path)] == ["key0"]
    filled(tmp_path, [1])
    assert said(tmp_path) == ["key0", "key1"]


def test_a_line_that_is_none_is_named(tmp_path):
    (tmp_path / "manifest.jsonl").write_text("{}\n")
    with pytest.raises(OutputError, match=r"manifest\.jsonl, line 1"):
        Manifest(tmp_path)
    with pytest.raises(OutputError, match=r"manifest\.jsonl, line 1"):
        read_manifests(tmp_path)


def test_one_run_at_a_time(tmp_path):
    first = Manifest(tmp_path)
    with pytest.raises(UsageError, match="another run writes"):
        Manifest(tmp_path)
    first.close()
    Manifest(tmp_path).close()


def test_runs_that_share_a_set_have_manifests_of_their_own(tmp_path):
    first, second = Manifest(tmp_path, (0, 2)), Manifest(tmp_path, (1, 2))
    first.add(line(0), [fault(0)])
    second.add(line(1), [])
    with pytest.raises(UsageError, match="the same n"):
        Manifest(tmp_path, (0, 3))
    first.close()
    second.close()
    assert list(read_manifests(tmp_path)) == [0, 1]
    # Whoever goes on alone, or with others, knows what they did.
    third = Manifest(tmp_path)
    assert (third.finished, list(third.elsewhere)) == ({}, [0, 1])
    third.close()
    assert [error.key for error in read_errors(tmp_path)] == ["key0"]


def test_a_part_is_finished_once(tmp_path):
    filled(tmp_path, [0], (0, 2))
    filled(tmp_path, [0])
    with pytest.raises(OutputError, match="part 0 .* is finished twice"):
        read_manifests(tmp_path)


def test_a_full_disk_leaves_what_was_finished(tmp_path, monkeypatch):
    filled(tmp_path, [0])
    manifest = Manifest(tmp_path)
    write = module._write

    def full(file, lines):
        write(file, lines[:7])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(OutputError, match="the disk is full"):
        manifest.add(line(1), [fault(1)])
    manifest.close()
    monkeypatch.undo()
    filled(tmp_path, [1])
    assert list(read_manifests(tmp_path)) == [0, 1] and said(tmp_path) == ["key0", "key1"]
