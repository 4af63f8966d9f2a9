"""The bytes of an item as a file: of this machine, within an archive, in memory, from a store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import streamenc
from streamenc.bulk.decoding import localpath
from streamenc.bulk.decoding.localpath import local_path
from streamenc.bulk.decoding.mediareader import MediaReader
from streamenc.bulk.items import Blob, Item, Local, Media, Region, Remote
from streamenc.errors import MediaError, UsageError
from tests.support.media import write_wav
from tests.support.sound import noisy_tone

RATE = 8000


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "it's a \\ place"
    folder.mkdir()
    yield folder
    assert not list(folder.iterdir())


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "clip.wav", noisy_tone(RATE, 1, 0.5), RATE)


def content(media: Media, scratch: Path) -> bytes:
    with local_path(media, scratch) as path:
        assert os.path.splitext(path)[1] == os.path.splitext(media.name)[1]
        return Path(path).read_bytes()


def data_of(media: Media, scratch: Path) -> np.ndarray:
    with MediaReader("audio", scratch).open(Item("key", media)) as reading:
        return np.concatenate([frame.data for frame in reading.frames()], axis=1)


@pytest.mark.parametrize("in_memory_bytes", [1 << 20, 100])
def test_the_same_bytes_from_everywhere(
    in_memory_bytes: int, clip: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(localpath, "MEMORY_BYTES", in_memory_bytes)
    monkeypatch.setattr(localpath, "COPY_BYTES", 999)
    data = clip.read_bytes()
    archive = clip.with_name("set.tar")
    archive.write_bytes(b"x" * 512 + data + b"y" * 100)
    fsspec.filesystem("memory").pipe("/clip.wav", data)
    whole = streamenc.read(clip).data
    for media in (
        Local(str(clip)),
        Local(f"file://{clip}"),
        Region(str(archive), 512, len(data), "set.tar/clip.wav"),
        Blob(data, "set.parquet, row 5, clip.wav"),
        Remote("memory://clip.wav"),
    ):
        assert content(media, scratch) == data
        np.testing.assert_array_equal(data_of(media, scratch), whole)


def test_a_relative_name_is_a_name(clip: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(clip.parent)
    os.rename(clip, "concat:a.wav")
    assert data_of(Local("concat:a.wav"), scratch).shape == (1, RATE // 2)


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, scratch: Path):
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero")):
        with pytest.raises(MediaError, match="is no file, but a pipe"):
            data_of(Local(str(path)), scratch)


def test_a_region_that_is_not_all_there(clip: Path, scratch: Path):
    media = Region(str(clip), 100, 10**9, "clip.wav/member.wav")
    with pytest.raises(MediaError, match=r"ends within clip\.wav/member\.wav"):
        data_of(media, scratch)


@pytest.mark.parametrize("suffix", [".wav", ".heic", ".odd!suffix"])
def test_errors_name_the_item(suffix: str, scratch: Path):
    name = f"s3://bucket/set.tar/broken{suffix}"
    with pytest.raises(MediaError) as raised:
        data_of(Blob(b"RIFF no, text that stands here for sound", name), scratch)
    said = str(raised.value)
    assert name in said and "scratch" not in said and "item-" not in said and "place" not in said


def test_errors_and_logs_of_stores_say_no_password(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    pytest.importorskip("fsspec")
    monkeypatch.setattr(localpath, "PAUSES_SECONDS", (0.0, 0.0))
    media = Remote("memory://me:secret@host/clip.wav?token=secret")
    with pytest.raises(MediaError, match=r"there is no file 'memory://\*\*\*@host") as raised:
        data_of(media, scratch)
    assert "secret" not in str(raised.value) + media.name + caplog.text


def test_a_store_that_fails_is_asked_again(
    clip: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(localpath, "PAUSES_SECONDS", (0.0, 0.0))
    asked: list[str] = []

    def opened(address: str) -> Any:
        asked.append(address)
        if len(asked) < 3:
            raise MediaError("the connection was reset")
        return open(clip, "rb")

    monkeypatch.setattr(localpath.filesystem, "opened", opened)
    assert content(Remote("memory://clip.wav"), scratch) == clip.read_bytes()
    assert len(asked) == 3


def test_a_file_that_breaks_off(clip: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(localpath, "PAUSES_SECONDS", (0.0,))

    class Short:
        size = 10**6

        def __enter__(self) -> Short:
            return self

        def __exit__(self, *raised: object) -> None:
            return None

        def __init__(self) -> None:
            self._left = [b"RIFF", b""]

        def read(self, size: int) -> bytes:
            return self._left.pop(0)

    monkeypatch.setattr(localpath.filesystem, "opened", lambda address: Short())
    with pytest.raises(MediaError, match="broke off after 4 of its 1000000 bytes"):
        content(Remote("memory://clip.wav"), scratch)


def test_no_address_of_ffmpeg_is_opened(scratch: Path):
    for url in ("rtmp://host/a", "concat:a|b://c", "reference://x", "memory://a::zip://b"):
        with pytest.raises((UsageError, MediaError)):
            content(Remote(url), scratch)
