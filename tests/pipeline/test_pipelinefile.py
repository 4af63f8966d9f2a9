"""Pipeline files from strangers: what a parser would take long over is refused before it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from streamenc.errors import UsageError
from streamenc.pipeline.builder import Pipeline
from streamenc.pipeline.pipelinefile import MAX_DOTS, read_pipeline


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" + ".a" * 50_000 + " = 1", "line 1 has more than 32 dots between names"),
        ("\n[" + "a . " * 50_000 + "a]", "line 2 has more than 32 dots"),
        ("x = {" + '"a".' * 40 + "a = 1}", "more than 32 dots"),
        ("\n".join("[" + "a." * 500 + f"b{n}]" for n in range(1000)), "more than 32 dots"),
        ("x = " + "[" * 100_000, "hundreds deep|no TOML"),
        ("x = " + "{a = " * 20_000, "hundreds deep|no TOML"),
        ("x = " + "1" * 10_000, "no TOML"),
    ],
    ids=["keys", "header", "inline", "headers", "arrays", "tables", "digits"],
)
def test_depth(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "deep.toml"
    path.write_text(text)
    begun = time.process_time()
    with pytest.raises(UsageError, match=message):
        read_pipeline(path)
    assert time.process_time() - begun < 1


def test_dots_that_part_no_names(tmp_path: Path) -> None:
    path = tmp_path / "dotted.toml"
    path.write_text(
        f"# {'. ' * 1000}\n# {'.' * 1000}\n[nodes.a]\nsource = 'test:'\n"
        f"[nodes.b]\nsink = '{'../' * 100}x.arrows'\nafter = 'a'\n"
        f"options = {{{'a.' * MAX_DOTS}a = 1}}\n"
    )
    assert set(read_pipeline(path).nodes) == {"a", "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"deadline_ms = 0x{'f' * 5000}", "deadline_ms.*must be.*number.*too long to be written"),
        ("deadline_ms = 1e308", "deadline_ms=1e\\+308; wanted a finite number"),
        ("max_age_ms = nan", "max_age_ms.*nan"),
        ("max_age_ms = 1e-320", "max_age_ms=1e-320; wanted a finite number"),
    ],
)
def test_times_of_a_graph(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f"{line}\n[nodes.a]\nsource = 'test:'\n")
    with pytest.raises(UsageError, match=message):
        Pipeline.from_toml(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("options = {fps = 0x" + "f" * 5000 + "}", "'fps' must be.*too long to be written"),
        ('options = {size = "' + "9" * 9000 + '"}', "'size' must be.*got '9{100,199}\\.\\.\\."),
        ('options = {size = "\\u0000"}', "'size' must be Unicode of up to 4096"),
        ("options = {live = [1]}", "'live' must be true or false"),
    ],
)
def test_options(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f"[nodes.a]\nsource = 'test:'\n{line}\n")
    with pytest.raises(UsageError, match=message):
        Pipeline.from_toml(path)


def test_the_wait_of_a_merge(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        "[nodes.a]\nsource = 'test:'\n[nodes.b]\nsource = 'test:'\n"
        "[nodes.m]\nmerge = ['a', 'b']\nmax_wait_ms = 1e308\n"
    )
    with pytest.raises(UsageError, match="max_wait_ms=1e\\+308; wanted a finite number of ms, 0"):
        Pipeline.from_toml(path)


def test_the_name_of_a_file(tmp_path: Path) -> None:
    for name in ("x" * 300, "x\0y", "x/" * 3000, "\ud800"):
        with pytest.raises(UsageError, match="is no name"):
            read_pipeline(tmp_path / name)
