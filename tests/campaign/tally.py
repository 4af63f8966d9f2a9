"""Tally: what the cases of one target came to; and a table of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

COLUMNS = (
    "target",
    "cases",
    "refused",
    "accepted",
    "foreign",
    "hang / memory",
    "crash",
    "worst s",
    "worst MB",
)


@dataclass
class Tally:
    """Counts of one target's cases.

    Attributes:
        over: cases that broke a bound of time or memory, or hung.
        faults: what each kind of fault said first, with how many there were and the first case's
            number.
        note: why it ended before its time.
    """

    target: str
    cases: int = 0
    refused: int = 0
    taken: int = 0
    foreign: int = 0
    over: int = 0
    crashes: int = 0
    worst_seconds: float = 0.0
    worst_bytes: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    note: str = ""

    def add(self, number: int, ended: dict[str, Any]) -> str:
        """Counts a case that ended; the kind of its fault if that is a new one, or ""."""
        self.cases += 1
        self.refused += ended["ending"] == "refused"
        self.taken += ended["ending"] == "taken"
        self.foreign += ended["ending"] == "foreign"
        self.worst_seconds = max(self.worst_seconds, ended["seconds"])
        self.worst_bytes = max(self.worst_bytes, ended["peak_bytes"])
        over = len(ended["faults"]) > (ended["ending"] == "foreign")
        self.over += over
        if not ended["faults"]:
            return ""
        return self._fault(number, "; ".join(ended["faults"]))

    def lost(self, number: int, said: str, *, hung: bool, seconds: float) -> str:
        """Counts a case that did not end, or ended the process; the kind of it, if it is new."""
        self.cases += 1
        self.over += hung
        self.crashes += not hung
        self.worst_seconds = max(self.worst_seconds, seconds)
        return self._fault(number, said)

    def _fault(self, number: int, said: str) -> str:
        kind = _kind(said)
        for known in self.faults:
            if known["kind"] == kind:
                known["count"] += 1
                return ""
        self.faults.append({"kind": kind, "said": said[:500], "count": 1, "first_case": number})
        return kind

    def cells(self) -> list[str]:
        counts = (self.cases, self.refused, self.taken, self.foreign, self.over, self.crashes)
        return [
            self.target,
            *(f"{count:,}" for count in counts),
            f"{self.worst_seconds:.2f}",
            f"{self.worst_bytes / 2**20:.0f}",
        ]


def _kind(said: str) -> str:
    """Without the numbers and the texts that differ from case to case: what and where."""
    return re.sub(r"[\d.]+ (s|MiB)\b", r"N \1", said.partition(": ")[0])


def print_tallies(tallies: Iterable[Tally], begun: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 110)
    table = Table(box=box.SIMPLE_HEAD, title=begun, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "target" else "right")
    counted = list(tallies)
    for tally in counted:
        faulty = tally.foreign or tally.over or tally.crashes or tally.note
        table.add_row(*tally.cells(), style="red" if faulty else None)
    console.print(table)
    for tally in counted:
        for fault in tally.faults:
            console.print(
                f"{tally.target}, {fault['count']} times, first case {fault['first_case']}: "
                + escape(fault["said"]),
                highlight=False,
            )
        if tally.note:
            console.print(f"{tally.target}: {escape(tally.note)}", highlight=False)


def write_part(path: Path, part: str, found: object, machine: dict[str, Any]) -> None:
    """Replaces one part of a campaign's JSON; the others, with their machine and day, stay."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"name": "campaign"}
    known[part] = {"machine": machine, "found": found}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def plain(tallies: Iterable[Tally]) -> list[dict[str, Any]]:
    return [asdict(tally) for tally in tallies]
