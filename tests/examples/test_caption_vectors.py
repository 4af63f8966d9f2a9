"""Captions go out over ZeroMQ with their vectors, and come back with their numbers."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.support.program import script
from tests.support.zoo.texts import save_bert

ROOT = Path(__file__).parents[2]


def test_captions_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_bert("bert")(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    text = (ROOT / "examples" / "caption_vectors.py").read_text()
    here = tmp_path / "caption_vectors.py"
    here.write_text(text.replace("127.0.0.1:5557", f"127.0.0.1:{port}"))
    done = script(here, tmp_path, ROOT / "examples" / "data" / "captions.jsonl")
    assert done.code == 0, done.error
    lines = done.out.splitlines()
    assert [line.split()[2] for line in lines] == ["0", "1", "2", "2"]
    assert "the sea leaves at nine" in lines[0] and "near" not in lines[0]
    assert "(revised) 'when does the train leave', near" in lines[3]
