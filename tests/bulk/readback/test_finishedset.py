"""Sets that are whole, and those that something happened to."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

import streamenc
from streamenc.bulk.items import Tokens
from streamenc.bulk.manifest import Manifest, read_manifests
from streamenc.bulk.readback import finishedset
from streamenc.bulk.readback.finishedset import SetReport, check_set
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.bulk.tokenizing import tokenize
from streamenc.errors import OutputError, UsageError
from tests.support.media import write_wav
from tests.support.tokensets import facts, finish_part, make_set, row_of

COUNTS = (3, 0, 4)
FILE = "data/000002.parquet"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return make_set(tmp_path / "set", COUNTS)


def edit_manifest(output: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = output / "manifest.jsonl"
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def made_anew(output: Path, rows: list[object], **changes: object) -> None:
    """The last part with other rows, and a manifest that says what it would of the ones before."""
    line = finish_part(output, 2, rows, (facts(),))  # type: ignore[arg-type]
    line = msgspec.structs.replace(line, **changes)
    edit_manifest(output, lambda lines: [*lines[:2], msgspec.json.encode(line) + b"\n"])


@pytest.mark.parametrize("layout", ["books", "flat", "delay:0,2,2"])
def test_a_whole_set(tmp_path: Path, layout: str) -> None:
    told = []
    output = make_set(tmp_path / "set", COUNTS, layout=layout)
    report = check_set(output, sample=0, tell=lambda report, total: told.append(report.bytes))
    assert report.good and not report.left_out
    assert (report.parts, report.finished, report.files, report.rows) == (3, 3, 3, 7)
    assert report.bytes == told[-1] == sum(path.stat().st_size for path in output.glob("data/*"))


def swapped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "told", "part"),
    [
        (lambda o: (o / FILE).unlink(), "cannot be read: No such file", 2),
        (lambda o: (o / FILE).write_bytes(b"x"), "it has 1 bytes; it had", 2),
        (lambda o: swapped(o / FILE), "its content is another", 2),
        (
            lambda o: edit_manifest(o, lambda lines: lines[:2]),
            "1 of 3 parts are not finished",
            None,
        ),
        (lambda o: edit_manifest(o, lambda lines: [*lines, lines[0]]), "part 0 has 2 lines", 0),
        (
            lambda o: edit_manifest(
                o, lambda lines: [*lines, lines[0].replace(b'"part":0', b'"part":7')]
            ),
            "part 7 is not in the plan",
            7,
        ),
        (lambda o: made_anew(o, [row_of(n) for n in (3, 4, 5)], items=4), "other rows", 2),
        (
            lambda o: made_anew(o, [row_of(n) for n in (3, 4, 5)], frames=(1,)),
            "the manifest has",
            2,
        ),
        (lambda o: made_anew(o, [row_of(n) for n in (3, 4)], seconds=9.0), "9.000", 2),
        (lambda o: made_anew(o, [row_of(n) for n in (3, 4)], errors=2), "0 errors of the part", 2),
        (lambda o: made_anew(o, [row_of(2), row_of(4)]), "key 'row 2' is in data/000000", None),
        (lambda o: (o / "data" / "x.parquet").touch(), "no manifest names it", None),
        (lambda o: (o / "notes.txt").touch(), "no manifest names it", None),
    ],
)
def test_what_can_be_wrong(
    output: Path, harm: Callable[[Path], object], told: str, part: int | None
) -> None:
    harm(output)
    report = check_set(output, sample=0)
    assert not report.good
    (problem,) = [problem for problem in report.problems if told in problem.what]
    assert problem.part == part and problem.remedy


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (Tokens(np.full((3, 4), 50, np.uint16)), "code 50; there are 50 entries"),
        (Tokens(np.zeros((2, 4), np.uint16)), "2 rows of tokens; 3 are wanted"),
        (Tokens(np.zeros((3, 4), np.uint16), gaps=(4,)), "not within its 4 frames"),
    ],
)
def test_tokens_that_no_model_gives(output: Path, tokens: Tokens, told: str) -> None:
    made_anew(output, [replace(row_of(3), tokens=(tokens,))])
    (problem,) = check_set(output, sample=0).problems
    assert problem.what.startswith("row 3: ") and told in problem.what


def test_repair(output: Path) -> None:
    swapped(output / FILE)
    with open(output / "manifest.jsonl", "ab") as other, pytest.raises(UsageError, match="a run"):
        fcntl.flock(other, fcntl.LOCK_EX)
        check_set(output, sample=0, repair=True)
    report = check_set(output, sample=0, repair=True)
    assert report.repaired == [2]
    assert list(read_manifests(output)) == [0, 1]
    manifest = Manifest(output)
    manifest.add(finish_part(output, 2, [row_of(n) for n in range(3, 7)], (facts(),)), [])
    manifest.close()
    assert check_set(output, sample=0, repair=True) == check_set(output, sample=0)
    assert check_set(output, sample=0).good


def test_many_keys_twice_are_counted(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finishedset, "MOST_NAMED", 1)
    made_anew(output, [row_of(n) for n in (0, 1, 2)])
    assert [problem.what for problem in check_set(output, sample=0).problems] == [
        "the key 'row 0' is in data/000000.parquet already",
        "2 more keys are there twice",
    ]


def test_what_is_no_set_or_no_model(output: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="holds no plan"):
        check_set(tmp_path / "nothing")
    report = check_set(output, sample=3)
    assert report.good and report.lengths == report.decoded == 0
    assert "lengths and decoding of codes: " in report.left_out[0]


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, output = tmp_path_factory.mktemp("spoken"), tmp_path_factory.mktemp("sets") / "set"
    for number in range(3):
        write_wav(folder / f"{number}.wav", 0.1 * np.random.randn(1, 9000 + number), 8000)
    asks = (ModelAsk(name="nano", codebooks=2), ModelAsk(name="mel"))
    tokenize(TokenizeJob(input=str(folder), models=asks, layout="flat"), output, workers=0)
    return output


def checked(output: Path) -> SetReport:
    return check_set(output, sample=2)


def test_rows_are_decoded(spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = checked(spoken)
    assert report.good and (report.lengths, report.decoded) == (6, 2)
    assert report.left_out == ["decoding of mel_features: mel has no decoder"]

    rows = finishedset._Check._rows
    monkeypatch.setattr(
        finishedset._Check,
        "_rows",
        lambda *given: (row | {"n_samples": 4500} for row in rows(*given)),
    )
    problems = checked(spoken).problems
    assert len(problems) == 6 and "frames for 4500 samples of 8000 Hz; about" in problems[0].what


def test_a_model_with_other_weights(spoken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        type(streamenc.load("nano", backend="torch").encoder), "fingerprint", lambda self: "f" * 32
    )
    report = checked(spoken)
    assert report.good and report.decoded == 0
    assert "has the fingerprint ffff" in report.left_out[0]
