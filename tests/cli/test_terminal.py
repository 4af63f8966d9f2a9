"""What strangers called things never moves a terminal, nor makes lines of a log."""

from __future__ import annotations

import json
import logging
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from streamenc.addresses import PlainFormatter, shown_lines, shown_text
from streamenc.cli.main import main
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.files.recording import RecordingSink

ESCAPE, TURNED = "\x1b[2J\x1b]0;title\x07", "\u202egnp.exe"
EVIL = f"a{ESCAPE}\nb{TURNED}\x9b2J"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Mitschnitt vom 3. Mai, 日本語, 👩‍🔬", None),
        ("a\u202f\u00a0\u3000b", None),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\r\nb\tc\x00\x7f\x9b", "a\\r\\nb\\tc\\x00\\x7f\\x9b"),
        ("\u2028\u2066\u200f\ufeff", "\\u2028\\u2066\\u200f\\ufeff"),
        ("\ud800x", "\\ud800x"),
    ],
)
def test_what_is_shown(text: str, shown: str | None) -> None:
    assert shown_text(text) == (text if shown is None else shown)
    assert shown_lines(f"{text}\nb") == shown_text(text).replace("\\n", "\n") + "\nb"


def test_a_log_has_the_lines_that_were_logged() -> None:
    handler = logging.StreamHandler()
    formatter = PlainFormatter("streamenc: %(message)s")
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "of %s", (EVIL,), None)
    assert formatter.format(record) == f"streamenc: of {shown_text(EVIL)}"
    try:
        raise ValueError(EVIL)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    lines = formatter.format(record).split("\n")
    assert lines[:2] == ["streamenc: failed", "Traceback (most recent call last):"]
    assert not any("\x1b" in line or "\u202e" in line for line in lines)
    handler.close()


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A recording whose model and end are a stranger's words."""
    info = StreamInfo(
        "codes", Fraction(1, 24_000), Fraction(25, 2), (1, None), "uint16", EVIL, 2048
    )
    path = tmp_path / "evil.arrows"
    sink = RecordingSink(str(path))
    sink.open_blocking(info)
    sink.write_blocking(Frame(np.zeros((1, 1), np.uint16), 0, 1920, 0))
    sink.broken = f"gone {EVIL}"
    sink.close_blocking()
    return path


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    with pytest.raises(SystemExit):
        main([*arguments])
    got = capsys.readouterr()
    return got.out, got.err


def test_inspect_and_an_error_of_decode(
    evil: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = ran(capsys, "inspect", str(evil))[0]
    assert "model" in said and "\\x1b[2J" in said and "\\u202egnp.exe" in said
    said += "".join(ran(capsys, "decode", str(evil), str(tmp_path / "a.wav")))
    assert "none of the listed models" in said
    assert not set("\x1b\x07\x9b\u202e") & set(said)


def test_json_is_exact(evil: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = evil.with_suffix(".jsonl")
    pipeline = evil.with_name("p.toml")
    pipeline.write_text(f'[nodes.a]\nsource = "{evil}"\n[nodes.b]\nsink = "{path}"\nafter = "a"\n')
    said = "".join(ran(capsys, "run", str(pipeline)))
    assert "gone a" in said and not set("\x1b\x07\x9b\u202e") & set(said)
    first, *_, last = map(json.loads, path.read_text().splitlines())
    assert (first["info"]["model"], last["reason"]) == (EVIL, f"gone {EVIL}")


@pytest.mark.parametrize("command", ["inspect", "decode"])
def test_half_of_a_pair_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """JSON may say it, and no UTF-8 has it."""
    path = tmp_path / "a.jsonl"
    info = {
        "kind": "codes", "time_base": "1/24000", "rate": "25/2", "shape": [1, None],
        "dtype": "uint16", "model": "\ud800", "codebook_size": 2048,
    }  # fmt: skip
    path.write_text(json.dumps({"info": info}) + "\n")
    output = [str(tmp_path / "a.wav")] * (command == "decode")
    assert "a model's name is Unicode" in ran(capsys, command, str(path), *output)[1]


def test_names_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / f"x\x1b[31m{TURNED}.arrows"
    path.write_bytes(b"none")
    for command in (["inspect", str(path)], ["decode", str(path), str(tmp_path / "a.wav")]):
        said = "".join(ran(capsys, *command))
        assert said and not set("\x1b\u202e") & set(said), command
    broken = str(tmp_path / "\udcff.arrows")  # as Python has bytes that are no UTF-8
    assert "\\udcff" in ran(capsys, "inspect", broken)[1]
