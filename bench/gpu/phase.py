"""A phase of a run: a process of its own, with a time of its own, that writes rows.

What it measures is a function of a `Phase`, which needs no torch itself.
"""

from __future__ import annotations

import faulthandler
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.gpu.rows import CHECKS, FACTS, Line, append, read
from bench.harness import Row

# For what ends a phase in order, before it is ended.
RESERVE_SECONDS = 2.0
# Errors after which no call of the process to the device works any more.
FATAL = ("illegal memory access", "unspecified launch failure", "misaligned address", "device-side")


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found.

    error  Relative; it passes up to `limit`.
    wrong  What is wrong beside that; "" for nothing.
    """

    error: float | None = None
    limit: float = 0.0
    wrong: str = ""
    note: str = ""
    agreement: float | None = None

    @property
    def ok(self) -> bool:
        # An error that is not a number is above every limit.
        return not self.wrong and (self.error is None or self.error <= self.limit)

    @property
    def said(self) -> str:
        limit = "" if self.error is None else f"at most {self.limit:.0e}"
        return ", ".join(part for part in (self.wrong, limit, self.note) if part)


class Phase:
    """What a phase is told and how it answers.

    dry     In small and on the CPU: figures of speed are withheld.
    folder  For weights, shared by the phases of a run.
    rows    The run's rows, those of earlier phases among them.
    """

    def __init__(
        self, name: str, rows: Path, folder: Path, deadline: float, *, dry: bool = False
    ) -> None:
        self.name, self.rows, self.folder, self.dry = name, rows, folder, dry
        self._deadline = deadline - RESERVE_SECONDS
        self._start = time.monotonic()

    def left_seconds(self) -> float:
        return self._deadline - time.monotonic()

    def allows(self, table: str, name: str, seconds: float = 0.0) -> bool:
        """Whether there is time for a row; what there is none for is told in it."""
        fits = self.left_seconds() > seconds
        if not fits:
            self.write(table, name, note="no time")
        return fits

    def write(self, table: str, name: str, **more: Any) -> None:
        line = Line(self.name, table, name, dry=self.dry, at_s=round(self._seconds(), 2), **more)
        append(self.rows, line)
        shown = line.row()
        times = "" if shown.p50_ms is None else f" p50 {shown.p50_ms:.4f} ms"
        print(f"[{self.name} {line.at_s:6.1f} s] {table}: {name}:{times} {shown.note}", flush=True)

    def facts(self, **found: Any) -> None:
        """What is known of the machine."""
        append(self.rows, Line(self.name, FACTS, "machine", facts=found, dry=self.dry))

    def check(self, subject: str, name: str, call: Callable[[], Found]) -> bool:
        """Writes what a check finds; what it raises is wrong, and the next one is made."""
        if not self.allows(CHECKS, name):
            return False
        start = time.monotonic()
        try:
            found = call()
        except Exception as error:  # whatever a compiler or a launch raises, others still run
            found = Found(wrong=said(error))
            self._end_where_lost(error, name)
        note = f"{found.said}; {time.monotonic() - start:.1f} s".removeprefix("; ")
        self.write(
            CHECKS,
            name,
            subject=subject,
            ok=found.ok,
            error=found.error,
            agreement=found.agreement,
            note=note,
        )
        return found.ok

    def timed(
        self,
        table: str,
        name: str,
        call: Callable[[], Sequence[float]],
        *,
        unit: str,
        subject: str = "",
        seconds: float = 0.0,
        note: Callable[[Row], str] = lambda row: "",
        **more: Any,
    ) -> Row | None:
        """Times in ms as a row, marked where its subject failed its check; None where it failed.

        seconds  That there must be time for.
        note     Of the row; not asked in a dry run.
        """
        if not self.allows(table, name, seconds):
            return None
        try:
            row = Row.of(name, call())
        except Exception as error:  # out of memory, or what cannot be captured: others still run
            self.write(table, name, note=f"not timed: {said(error)}", subject=subject)
            self._end_where_lost(error, name)
            return None
        figures: dict[str, Any] = {}
        if not self.dry:
            keys = ("min_ms", "p50_ms", "p90_ms", "p99_ms", "max_ms")
            figures = {key: getattr(row, key) for key in keys} | {"note": note(row)}
        self.write(
            table,
            name,
            unit=unit,
            subject=subject,
            proved=self.proved(subject),
            count=row.count,
            **{**more, **figures},
        )
        return row

    def rate(self, table: str, name: str, call: Callable[[], float], unit: str) -> None:
        """A figure of speed, in `unit`; see `known`."""
        try:
            value = call()
        except Exception as error:  # as above
            self.write(table, name, note=f"not measured: {said(error)}")
            self._end_where_lost(error, name)
            return
        self.write(table, name, value=None if self.dry else value, unit=unit)

    def known(self, name: str) -> float | None:
        """A figure that some phase before has measured."""
        found = [line.value for line in read(self.rows) if line.name == name and line.value]
        return found[-1] if found else None

    def proved(self, subject: str) -> bool | None:
        """Whether all checks of a subject passed so far; None where none was made."""
        checks = [x.ok for x in read(self.rows) if x.ok is not None and x.subject == subject]
        return all(checks) if subject and checks else None

    def _seconds(self) -> float:
        return time.monotonic() - self._start

    def _end_where_lost(self, error: Exception, name: str) -> None:
        """A process whose device is lost cannot go on; the next one can."""
        if type(error).__name__ == "AcceleratorError" or any(x in str(error) for x in FATAL):
            raise SystemExit(f"the device is lost to this process after {name}: {said(error)}")


def said(error: BaseException) -> str:
    """An error in a line."""
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:300]


def run(target: str, phase: Phase, limit_seconds: float) -> None:
    """Runs "module:function"; one that hangs says where, and ends."""
    faulthandler.dump_traceback_later(max(0.1, limit_seconds), exit=True)
    module, _, function = target.partition(":")
    getattr(importlib.import_module(module), function)(phase)
    faulthandler.cancel_dump_traceback_later()
