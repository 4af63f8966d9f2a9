"""Which kind of data set an address is taken for."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from streamenc.bulk.inputs.looks import KINDS, look, open_input
from streamenc.errors import MediaError, UsageError


def test_folders_patterns_and_files(tmp_path: Path):
    (tmp_path / "a.flac").touch()
    for address in (tmp_path, tmp_path / "*.flac", tmp_path / "a.flac"):
        assert look(str(address)) == "folder"


def test_what_is_unknown_is_told_with_what_is_known(tmp_path: Path):
    (tmp_path / "a.xyz").write_bytes(b"BLOB12")
    with pytest.raises(UsageError, match="begins with b'BLOB12'; known are .*a folder"):
        look(str(tmp_path / "a.xyz"))
    with pytest.raises(UsageError, match="there is no .*nowhere'; a data set is .*a folder"):
        look(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="kind 'heap'; known are .*folder"):
        open_input("heap", str(tmp_path), "audio", tmp_path)


def test_passwords_are_not_shown():
    with pytest.raises(UsageError) as raised:
        look("rtsp://me:secret@host/a")
    assert "secret" not in str(raised.value) and "no store" in str(raised.value)
    pytest.importorskip("fsspec")
    with pytest.raises((UsageError, MediaError)) as other:
        look("memory://me:secret@nowhere/a.wav")
    assert "secret" not in str(other.value)


def test_a_store_needs_fsspec(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"pip install 'streamenc\[bulk\]'"):
        look("s3://bucket/clips/")


def test_all_kinds_can_be_imported(tmp_path: Path):
    for kind in KINDS:
        open_input(kind, str(tmp_path / "nothing"), "audio", tmp_path)
