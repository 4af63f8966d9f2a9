"""Folders, patterns and single files as data sets, of this machine and in a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamenc.bulk.inputs.folder import LISTING, FolderInput
from streamenc.bulk.items import Item, Local, Remote
from streamenc.errors import UsageError


@pytest.fixture
def store() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec")
    made = fsspec.filesystem("memory")
    yield made
    made.rm("/", recursive=True)


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    root = tmp_path / "clips"
    for name in (
        "b.flac", "a/z.WAV", "a/y.mp4", "a.wav", ".hidden.wav", ".cache/x.wav", "a/note.txt",
        "__MACOSX/._a.wav", "c.png", "odd\nname.ogg",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def parts(address: str, kept: Path, takes: str = "audio", each: int = 2) -> list[list[Item]]:
    kept.mkdir(exist_ok=True)
    spans = list(FolderInput(address, takes, kept).spans(each))
    anew = FolderInput(address, takes, kept)  # as another process has it
    found = [[item for item in anew.items(span) if isinstance(item, Item)] for span in spans]
    assert [span.items for span in spans] == [len(items) for items in found]
    return found


def keys(address: str, kept: Path, takes: str = "audio") -> list[str]:
    return [item.key for items in parts(address, kept, takes) for item in items]


def test_a_folder_in_order_without_what_is_hidden(clips: Path, tmp_path: Path):
    found = parts(str(clips), tmp_path / "kept")
    names = ["a/y.mp4", "a/z.WAV", "a.wav", "b.flac", "odd\nname.ogg"]
    assert [[item.key for item in items] for items in found] == [names[:2], names[2:4], names[4:]]
    assert found[0][1].media == Local(f"{clips}/a/z.WAV")
    assert keys(f"{clips}/", tmp_path / "again") == names


def test_endings_are_of_what_models_take(clips: Path, tmp_path: Path):
    assert keys(str(clips), tmp_path / "kept", "video") == ["a/y.mp4", "c.png"]


def test_patterns(clips: Path, tmp_path: Path):
    (clips / "a" / "old.sph").touch()
    assert keys(f"{clips}/*/*.sph", tmp_path / "1") == ["a/old.sph"]
    assert keys(f"{clips}/**/*", tmp_path / "2")[:2] == ["a/y.mp4", "a/z.WAV"]
    assert keys(f"{clips}/a/?.*", tmp_path / "3") == ["y.mp4", "z.WAV"]
    assert keys(f"{clips}/b.flac", tmp_path / "4") == ["b.flac"]


def test_a_link_that_leads_back_ends(clips: Path, tmp_path: Path):
    (clips / "a" / "up").symlink_to(clips)
    (clips / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.wav").touch()
    assert keys(str(clips), tmp_path / "kept")[:2] == ["a/more/far.wav", "a/y.mp4"]


def test_a_name_that_is_no_text(tmp_path: Path):
    folder = os.fsencode(tmp_path / "clips")
    os.mkdir(folder)
    with open(folder + b"/\xff.wav", "wb"):
        pass
    ((item,),) = parts(os.fsdecode(folder), tmp_path / "kept")
    assert item.key == "\\xff.wav"
    assert isinstance(item.media, Local) and os.path.exists(item.media.path)
    item.media.name.encode()


def test_a_listing_is_not_read_as_a_whole(clips: Path, tmp_path: Path):
    kept = tmp_path / "kept"
    kept.mkdir()
    *_, last = list(FolderInput(str(clips), "audio", kept).spans(2))
    before = (kept / LISTING).read_bytes()[: last.start]
    (kept / LISTING).write_bytes(b"?" * len(before) + (kept / LISTING).read_bytes()[last.start :])
    (item,) = FolderInput(str(clips), "audio", kept).items(last)
    assert item.key == "odd\nname.ogg"


def test_nothing_is_said_with_what_there_is(clips: Path, tmp_path: Path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").touch()
    with pytest.raises(UsageError, match=r"no file of sound .* holds 1 of \.txt"):
        keys(str(tmp_path / "texts"), tmp_path / "1")
    with pytest.raises(UsageError, match="there is no file or folder"):
        keys(str(tmp_path / "nowhere"), tmp_path / "2")


def test_in_a_store(store: Any, tmp_path: Path):
    for name in ("a/x.wav", "a/b/y.flac", "a/.h.wav", "a/z.txt", "w.wav"):
        store.pipe(f"/set/{name}", b"12")
    (items,) = parts("memory://set/a", tmp_path / "1")
    assert [(item.key, item.media) for item in items] == [
        ("b/y.flac", Remote("memory://set/a/b/y.flac")),
        ("x.wav", Remote("memory://set/a/x.wav")),
    ]
    assert keys("memory://set/**/*.wav", tmp_path / "2") == ["a/x.wav", "w.wav"]
    assert keys("memory://set/w.wav", tmp_path / "3") == ["w.wav"]
