"""Files of weights: what stands in place of one, and what would take long to list."""

from __future__ import annotations

import json
import os
import socket
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from streamenc.checkpoints import archive, selection, weightfiles
from streamenc.checkpoints.checkpoint import open_checkpoint
from streamenc.cli.look.inspection import inspect_file
from streamenc.errors import CheckpointError, StreamencError


def put(path: Path, what: str) -> None:
    match what:
        case "zeros":
            path.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as made:
                here = os.getcwd()
                os.chdir(path.parent)  # the names of sockets are short
                made.bind(path.name)
                os.chdir(here)
        case "folder":
            path.mkdir()
        case "sparse":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        case "long":
            path.symlink_to("/" + "x" * 3000)


FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@pytest.mark.parametrize("name", [*FILES, "net.jit"])
@pytest.mark.parametrize("what", ["zeros", "pipe", "socket", "folder", "sparse", "long"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, what: str, name: str) -> None:
    if name == "config.json":
        save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    put(tmp_path / name, what)
    for ask in (open_checkpoint, inspect_file):
        with pytest.raises(CheckpointError) as refused:
            ask(str(tmp_path))
        assert str(tmp_path) in str(refused.value)
    if name != "config.json" and not name.endswith(".index.json"):
        with pytest.raises(StreamencError):
            inspect_file(str(tmp_path / name))


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 3000, "~nobody_at_all/x.pt", "a\0.pt"])
def test_what_is_no_name_is_refused(name: str) -> None:
    for ask in (open_checkpoint, inspect_file):
        with pytest.raises(StreamencError):
            ask(name)


def header(tensors: dict[str, Any], size: int | None = None) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text


def test_headers_of_safetensors_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.safetensors"
    path.write_bytes(header({}, 1 << 62))
    with pytest.raises(CheckpointError, match="a header of 4611686018427387904 bytes"):
        open_checkpoint(str(path))
    monkeypatch.setattr(weightfiles, "MAX_TENSORS", 3)
    save_file({f"t{n}": torch.zeros(1) for n in range(3)}, path)
    with pytest.raises(CheckpointError, match="4 tensors; wanted at most 3"):
        open_checkpoint(str(path))


def test_shards_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = {"weight_map": {f"t{n}": f"{n}.safetensors" for n in range(4)}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for n in range(4):
        save_file({f"t{n}": torch.zeros(1)}, tmp_path / f"{n}.safetensors")
    assert len(open_checkpoint(str(tmp_path)).names) == 4
    monkeypatch.setattr("streamenc.checkpoints.checkpoint.MAX_TENSORS", 3)
    with pytest.raises(CheckpointError, match="more than 3 tensors"):
        open_checkpoint(str(tmp_path))
    monkeypatch.setattr(selection, "MAX_SHARDS", 3)
    with pytest.raises(CheckpointError, match="lists 4 files; wanted at most 3"):
        open_checkpoint(str(tmp_path))


def test_lists_of_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.pt"
    with zipfile.ZipFile(path, "w") as file:
        for n in range(100):
            file.writestr(f"{n}", b"")
    monkeypatch.setattr(archive, "MAX_DIRECTORY_BYTES", 1000)
    with pytest.raises(CheckpointError, match="in more than 1000 bytes"):
        open_checkpoint(str(path))


def test_an_entry_beyond_the_end_is_refused(tmp_path: Path) -> None:
    """Its size is the directory's, which nothing has to hold."""
    path = tmp_path / "w.pt"
    torch.save({"a": torch.zeros(4)}, path)
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))
    content[at + 42 : at + 46] = struct.pack("<I", len(content) - 4)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="'a' cannot be read: .*beyond the end"):
        open_checkpoint(str(path)).stored("a")
