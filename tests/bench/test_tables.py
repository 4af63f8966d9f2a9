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
