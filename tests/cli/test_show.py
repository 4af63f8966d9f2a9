"""What the command line shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from streamenc.bulk.partwork import Progress
from streamenc.bulk.runfigures import RunTally
from streamenc.cli import show
from streamenc.errors import OutputError
from streamenc.graph.graph import Graph
from streamenc.graph.report import GraphReport
from tests.support.pipes import Collect, Held, Ticks


def report(**options: float) -> GraphReport:
    graph = Graph(**options)
    graph.source("in", Ticks(5, period_ms=1))
    graph.transform("held", Held(), "in")
    graph.sink("a", Collect(), "held")
    graph.sink("b", Collect(), "held")
    return anyio.run(graph.run)


def drawn(monkeypatch: pytest.MonkeyPatch, got: GraphReport, width: int) -> str:
    console = Console(width=width, highlight=False, markup=False)
    monkeypatch.setattr(show, "console", console)
    with console.capture() as capture:
        show.print_report(got)
    return capture.get()


def test_a_report_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = drawn(monkeypatch, report(deadline_ms=10_000), 80)
    lines = text.splitlines()
    assert "…" not in text
    (stage,) = [line.split() for line in lines if line.startswith("held")]
    assert stage[1:4] == ["5", "5", "0"]
    assert sum(line.startswith(("a ", "b ")) for line in lines) == 4
    assert "late means more than 10000 ms" in " ".join(text.split())


def test_a_name_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph()
    graph.source("[/red]in", Ticks(1, period_ms=0))
    graph.sink("[bold]out", Collect(), "[/red]in")
    text = drawn(monkeypatch, anyio.run(graph.run), 100)
    assert "[/red]in" in text and "[bold]out" in text


def test_stats_are_json(tmp_path: Path) -> None:
    got = report()
    show.write_stats(got, tmp_path / "stats.json")
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert stats["outcome"] == "ended" and stats["lost"] == 0
    assert [node["name"] for node in stats["nodes"]] == ["in", "held", "a", "b"]
    with pytest.raises(OutputError, match="cannot write .*there is no folder"):
        show.write_stats(got, tmp_path / "none" / "stats.json")


@pytest.mark.parametrize("width", [80, 200])
def test_names_of_models_are_whole_on_any_terminal(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    console = Console(width=width, force_terminal=True, record=True, file=io.StringIO())
    monkeypatch.setattr(show, "Console", lambda **_: console)
    names = ("mel:whisper", "nvidia/Cosmos-0.1-Tokenizer-DV8x16x16")
    rows = [(name, "offline", "13 ms", "-", "what it is, in some words") for name in names]
    show.print_named(("model", "equality", "latency", "codebooks", ""), rows)
    lines = console.export_text().splitlines()
    assert [len([line for line in lines if name in line]) for name in names] == [1, 1]
    assert max(map(len, lines)) <= width
    assert ("latency 13 ms" in " ".join(lines)) == (width == 80)


def test_the_line_of_a_run_over_a_data_set() -> None:
    tally = RunTally(2)
    tally.work(10, 0, [])
    spent = {"reading": 0.1, "decoding": 1.0, "encoding": 3.0}
    tally.told(Progress(part=0, items=40, errors=2, seconds=7200.0, spent=spent))
    line = show._run_line(tally.figures())
    assert "0 of 10 shards  40 items  2.00 h" in line
    assert "bound by encoding" in line and line.endswith("2 errors")
    sentences = list(show._run_sentences(tally.figures(), Path("set")))
    assert sentences == ["set: 0 of 10 shards, 0 items, 0.0 s"]
