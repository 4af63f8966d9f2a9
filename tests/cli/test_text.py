"""The command line on text: encode, listen to what was recorded, inspect and help."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import streamenc
from tests.support import texts
from tests.support.program import Done

Call = Callable[..., Done]
MODEL = ("-m", "tests.support.texts:load")


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("one\ntwo €\n\nfour\n")
    return path


def test_lines_become_vectors(lines: Path, tmp_path: Path, call: Call) -> None:
    done = call("encode", lines, tmp_path / "out.arrows", *MODEL)
    assert done.code == 0, done.error
    recording = streamenc.read(tmp_path / "out.arrows")
    assert recording.data.shape == (texts.WIDTH, 3)
    assert recording.segments is not None and recording.segments.tolist() == [0, 1, 3]


def test_the_text_beside_its_vectors(lines: Path, tmp_path: Path, call: Call) -> None:
    done = call("encode", lines, tmp_path / "out.arrows", "--text", *MODEL)
    assert done.code == 0, done.error
    said, made = streamenc.read(tmp_path / "out.arrows").tracks
    assert said.data.tolist() == [["one", "two €", "four"]] and made.data.shape[1] == 3
    done = call("encode", lines, tmp_path / "none.arrows", "--text", "-m", "mel")
    assert done.code != 0 and "--text is of models of text" in " ".join(done.error.split())


def test_vectors_as_json_lines(lines: Path, call: Call) -> None:
    done = call("encode", lines, "-", "--quiet", *MODEL)
    info, *rest = map(json.loads, done.out.splitlines())
    assert info["info"]["kind"] == "features" and info["info"]["rate"] == "0/1"
    assert [line["segment"] for line in rest] == [0, 1, 3]
    assert rest[0]["shape"] == [texts.WIDTH, 1] and "rms" in rest[0]


def test_a_transcript_by_its_name(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "talk.jsonl"
    path.write_text('{"text": "a", "id": 5}\n{"text": "b", "id": 5}\n')
    assert call("encode", path, tmp_path / "out.npz", *MODEL).code == 0
    done = call("inspect", tmp_path / "out.npz")
    assert "1 of 2 segments" in done.out and "in segments" in done.out
    done = call("inspect", f"text:{path}")
    assert "text" in done.out and "1 bytes" in done.out and "1 of 2 segments" in done.out
    done = call("inspect", path)
    assert done.code == 1 and "taken with a model of text, or as text:FILE" in " ".join(
        done.error.split()
    )


def test_what_is_piped_in() -> None:
    command = [sys.executable, "-m", "streamenc", "encode", "-", "-", *MODEL]
    done = subprocess.run(command, input=b"one\n\xff\ntwo\n", capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    got = [json.loads(line) for line in done.stdout.splitlines()[1:]]
    assert [(line["segment"], line.get("discontinuity", False)) for line in got] == [
        (0, False),
        (2, True),
    ]
    assert b"left out 1 line: no UTF-8; the first was line 2" in b" ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("mic:", "out.arrows", *MODEL), "'mic:' gives audio, but text was wanted"),
        (("a.txt", "out.arrows"), "'a.txt' gives text, but audio was wanted"),
        (("a.txt", "out.arrows", *MODEL, "--size", "4x4"), "takes text"),
        (("a.txt", "out.arrows", *MODEL, "--video", "mel"), "takes text"),
        (("a.txt", "out.arrows", *MODEL, "--channel", "0"), "channel is of sound or images"),
    ],
)
def test_what_does_not_fit(arguments: tuple[str, ...], why: str, call: Call) -> None:
    done = call("encode", *arguments)
    assert done.code != 0 and why in " ".join(done.error.split())


@pytest.mark.parametrize("scheme", ["text:", ".txt", "text+zmq+tcp:", "text+mqtt:", ".srt"])
def test_help_says_what_options_there_are(scheme: str, call: Call) -> None:
    done = call("help", scheme)
    assert done.code == 0 and "max_bytes" in done.out and "partials" in done.out
    assert "The longest segment, in bytes of UTF-8" in " ".join(done.out.split())
