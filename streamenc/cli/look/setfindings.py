"""How far the check of a set of tokens is, and what it found."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.status import Status

    from streamenc.bulk.readback.finishedset import SetReport


class CheckDisplay:
    """One line that changes, on a terminal; nothing elsewhere, or where `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._stack = quiet, ExitStack()
        self._status: Status | None = None

    def __enter__(self) -> Self:
        from streamenc.cli.show import console

        if not self._quiet and console.is_terminal:
            self._status = self._stack.enter_context(console.status("loading"))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def show(self, report: SetReport, total_bytes: int) -> None:
        if self._status is not None:
            share = report.bytes / max(1, total_bytes)
            wrong = f"  {len(report.problems)} problems" if report.problems else ""
            self._status.update(f"{share:.0%}  {report.files} files  {report.rows} rows{wrong}")


def print_check(report: SetReport) -> None:
    """On standard output: what was looked at, and a line for each problem."""
    from streamenc.cli.show import print_rows, print_text

    print_text(
        f"{report.output}: {report.finished} of {report.parts} parts, {report.files} files "
        f"({report.bytes / 1e6:.1f} MB), {report.rows} rows, {report.seconds / 3600:.2f} h; frames "
        f"compared with samples in {report.lengths} rows, {report.decoded} rows decoded"
    )
    for why in report.left_out:
        print_text(f"Not looked at: {why}.")
    if report.problems:
        rows = [(problem.file, problem.what, problem.remedy) for problem in report.problems]
        print_rows(("file", "what is wrong", "what to do"), rows)
    else:
        print_text("All is as it should be.")
    if report.repaired:
        print_text(
            f"{len(report.repaired)} parts are out of the manifest now: run `streamenc tokenize` "
            "again, which makes them anew."
        )
