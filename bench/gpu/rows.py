"""Rows of a run: each written as a line of JSON as soon as it is known, and read back as tables.

A process that dies, or is killed, loses nothing that it had written. Needs no torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bench.harness import Row, Table, write_json

CHECKS, FACTS, RUN = "Checks", "Facts", "The run"
# Of a table that is longer than that, the last rows are shown, which sum up.
LONG, LAST = 30, 4


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a run. None: not measured, or withheld, as times are in a dry run.

    table    The title of its table; CHECKS, FACTS and RUN are of no phase alone.
    subject  What was checked, or timed: times of what failed its check are marked.
    ok       Of a check, whether it passed.
    proved   Of a time, whether all checks of its subject passed; None where there was none.
    error    Relative, against the reference that the name tells.
    value    Of a rate or a fact, in `unit`.
    at_s     Seconds since its phase began.
    """

    phase: str
    table: str
    name: str
    unit: str = ""
    subject: str = ""
    ok: bool | None = None
    proved: bool | None = None
    error: float | None = None
    value: float | None = None
    count: int = 0
    min_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    agreement: float | None = None
    note: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    dry: bool = False
    at_s: float = 0.0

    def row(self) -> Row:
        """As the other measurements have it."""
        said = [self.note] if self.note else []
        if self.error is not None:
            said.insert(0, f"off by {self.error:.1e}")
        if self.value is not None:
            said.insert(0, f"{self.value:.5g} {self.unit}")
        if self.ok is not None:
            said.insert(0, "right" if self.ok else "WRONG")
        if self.proved is not None and not self.proved:
            said.append("its check FAILED")
        return Row(
            self.name,
            self.count,
            self.p50_ms,
            self.p90_ms,
            self.p99_ms,
            self.max_ms,
            agreement=self.agreement,
            note=", ".join(said),
            min_ms=self.min_ms,
        )


NAMES = {one.name for one in fields(Line)}


def append(path: Path, line: Line) -> None:
    """Writes one line with one call, so that lines of two processes never mix."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(line).items()
    }
    text = json.dumps(plain, allow_nan=False, default=str) + "\n"
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def read(path: Path) -> list[Line]:
    """All lines that are whole; a last one that its writer could not end is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            plain = json.loads(text)
        except ValueError:
            continue
        lines.append(Line(**{key: value for key, value in plain.items() if key in NAMES}))
    return lines


def tables(lines: Iterable[Line]) -> list[Table]:
    """By title, in the order of their first lines; facts are told under the run's own table."""
    by_title: dict[str, list[Line]] = {}
    for line in lines:
        if line.table != FACTS:
            by_title.setdefault(line.table, []).append(line)
    return [
        Table(title, next((line.unit for line in some if line.count), ""), [x.row() for x in some])
        for title, some in by_title.items()
    ]


def facts(lines: Iterable[Line]) -> dict[str, Any]:
    """What the phases told of the machine; the first word counts."""
    found: dict[str, Any] = {}
    for line in lines:
        if line.table == FACTS:
            found = {**line.facts, **found}
    return found


def write(path: Path, lines: list[Line], settings: dict[str, Any]) -> None:
    """The run as the other measurements in bench/results are."""
    write_json(path, "gpu", tables(lines), settings, facts(lines))


def summary(lines: list[Line]) -> Iterator[str]:
    """The run in plain text: what is wrong last, where the end of a log is what one sees."""
    told = facts(lines)
    kept = {key: told[key] for key in ("device", "driver", "versions", "commit") if told.get(key)}
    yield "\n" + ", ".join(f"{key} {value}" for key, value in kept.items())
    for table in tables(lines):
        if table.title not in (CHECKS, RUN):
            yield from _text(table)
    checks = [line for line in lines if line.ok is not None]
    for line in checks:
        if line.ok and line.table == CHECKS:
            error = "" if line.error is None else f" {line.error:.1e}"
            yield f"  right: {line.name}{error}"
    wrong = [line for line in checks if not line.ok]
    yield f"\n{len(checks) - len(wrong)} of {len(checks)} checks passed"
    for line in lines:
        if line.table == RUN:
            yield f"  {line.phase}: {line.name}{line.note and f': {line.note}'}"
    for line in wrong:
        yield f"FAILED: {line.phase}: {line.name}: {line.row().note}"


def _text(table: Table) -> Iterator[str]:
    yield f"\n{table.title}{table.unit and f' ({table.unit})'}"
    rows = table.rows
    if len(rows) > LONG:
        rows = rows[-LAST:]
        yield f"  {len(table.rows) - LAST} rows before these are in the file"
    width = min(60, max(len(row.name) for row in rows))
    if any(row.count for row in rows):
        yield f"  {'':{width}}{'min':>9}{'p50':>9}{'p99':>9}{'count':>7}"
    for row in rows:
        times = "".join(
            f"{'' if value is None else f'{value:.4f}':>9}"
            for value in (row.min_ms, row.p50_ms, row.p99_ms)
        )
        counted = f"{times}{row.count:>7}" if row.count else ""
        agrees = "" if row.agreement is None else f"  {row.agreement:.4f} of the codes agree"
        yield f"  {row.name:{width}}{counted}  {row.note[:120]}{agrees}".rstrip()
