"""The tables in the README and in the pages of docs are those that were measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import tables

RESULTS = sorted(path.stem for path in tables.RESULTS.glob("*.json"))


@pytest.mark.parametrize("page", list(tables.pages()), ids=lambda page: page.name)
def test_a_page_shows_what_was_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.filled(text) == text, "it has drifted: run python -m bench.tables"


def test_every_table_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in tables.pages())
    assert {name for _, name, *_ in tables.PLACE.findall(text)} == tables.TABLES.keys()


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()

    def noted(asked: str) -> dict[str, object]:
        read.add(asked)
        return found(asked)

    found = tables.run
    monkeypatch.setattr(tables, "run", noted)
    for table in tables.TABLES.values():
        table()
    assert name in read


def test_a_changed_digit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("before\n\n<!-- results: headline -->\n<!-- end -->\n\nafter\n")
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    written = readme.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n")
    assert "| Mimi encode, 8 codebooks" in written
    assert tables.main(["--check"]) == 0
    cell = tables.headline().splitlines()[2].split("|")[2]
    readme.write_text(written.replace(cell, " 1.0 ms "))
    assert tables.drifted() == [readme]
    assert tables.main(["--check"]) == 1
    assert tables.main([]) == 0
    assert readme.read_text() == written


def test_an_unknown_table_is_an_error() -> None:
    with pytest.raises(KeyError, match="nobody"):
        tables.filled("<!-- results: nobody -->\n<!-- end -->\n")


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.1885, "0.19"), (26.41, "26.4"), (3260.7, "3,261")]
)
def test_times_have_three_digits_or_so(value: float | None, text: str) -> None:
    assert tables.ms(value) == text


def row(name: str, p50_ms: float, **more: object) -> dict[str, object]:
    about = {"agreement": None, "note": "", "min_ms": p50_ms / 2, "p99_ms": 2 * p50_ms}
    return {"name": name, "p50_ms": p50_ms, **about, **more}


def a_run() -> dict[str, object]:
    """Two conditions of one step, in which another peer is the fastest."""
    where = {
        "cpu": "C",
        "cores": 2,
        "system": "S",
        "date": "2026-01-02",
        "versions": {"python": "3"},
    }
    common = {"title": tables.MIMI_STEPS[0], "unit": "ms", "threads": 1, "noise": None}
    facts = {"CPU used by others meanwhile": "0%"}
    quiet = [
        row("streamenc", 20.0),
        row("streamenc, compiled, int16", 8.0, agreement=1.0),
        row("moshi", 40.0, agreement=1.0, min_ms=30.0),
        row("rustymimi", 32.0, agreement=1.0, min_ms=31.0),
        row("transformers", 4.0, note="no streaming decode: a whole clip"),
    ]
    busy = [
        row("streamenc", 60.0),
        row("streamenc, compiled, int16", 10.0, agreement=1.0),
        row("moshi", 50.0, agreement=1.0),
    ]
    return {
        "machine": where,
        "tables": [
            {**common, "rows": quiet, "facts": facts, "busy": 0},
            {**common, "rows": busy, "facts": facts, "busy": 3},
        ],
    }


def test_conditions_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "run", lambda name: a_run())
    lines = tables.steps("Mimi encode").splitlines()
    head = "| ms, p50 / p99 | 1 thread | 1 thread, 3 busy processes beside | same codes |  |"
    assert head in lines
    assert "| streamenc, compiled, int16 | 8.00 / 16.0 | 10.0 / 20.0 | 1.000 |  |" in lines
    assert "| rustymimi | 32.0 / 64.0 | - | 1.000 |  |" in lines
    assert "CPU used by others 0%, 0%." in lines[-1]
    assert tables.steps("nano").count("|") == 0


def test_the_fastest_peer_is_that_of_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "run", lambda name: a_run())
    monkeypatch.setattr(tables, "MIMI_STEPS", tables.MIMI_STEPS[:1])
    _, _, torch, compiled = tables.speedups().splitlines()
    # A whole clip is no peer of a step. Minima: 30 of moshi over 4 and 10.
    assert compiled.split(" | ")[2:] == ["4.00 (7.50)", "5.00 (5.00) |"]
    assert torch.split(" | ")[2:] == ["1.60 (3.00)", "0.83 (0.83) |"]
