"""What the command line shows: progress, reports, and tables of models, devices and files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.status import Status
from rich.table import Table
from rich.text import Text

from streamenc.addresses import discreet, shown_lines, shown_text
from streamenc.graph.report import GraphReport
from streamenc.io.files.output import write_output

if TYPE_CHECKING:
    from streamenc.bulk.runfigures import RunFigures
    from streamenc.graph.graph import Graph
    from streamenc.latency import Latency

# Reports go to standard error: standard output belongs to the tokens.
console = Console(stderr=True, highlight=False, markup=False)
if not console.is_terminal:
    console.width = 120
REFRESH_SECONDS = 0.25
SAY_SECONDS = 30.0  # between lines in a log


@contextlib.asynccontextmanager
async def progress(
    graph: Graph, sink: str, total_seconds: Callable[[], float | None]
) -> AsyncIterator[None]:
    """A status line on a terminal while the graph runs; nothing where there is none.

    total_seconds  Length of the input, where it is known; asked anew each time.
    """
    if not console.is_terminal:
        yield
        return
    with console.status("starting") as status:

        async def refresh() -> None:
            while True:
                status.update(_status(graph.report(), sink, total_seconds()))
                await asyncio.sleep(REFRESH_SECONDS)

        task = asyncio.create_task(refresh())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def _status(report: GraphReport, sink: str, total_seconds: float | None) -> str:
    node = report[sink]
    if node.sink is None:
        return "opening"
    if not node.frames_out:
        return "waiting for the first frame"
    done = node.sink.media_seconds
    of = (
        f" of {total_seconds:.1f} s ({min(1.0, done / total_seconds):.0%})"
        if total_seconds
        else " s"
    )
    parts = [f"{done:.1f}{of}", f"{node.frames_in} frames", f"{node.sink.realtime_factor:.1f}x"]
    if node.sink.end_to_end.count:
        parts.append(f"p99 {node.sink.end_to_end.p99_ms:.0f} ms")
    if report.dropped:
        parts.append(f"[red]{report.dropped} dropped[/red]")
    return "  ".join(parts)


def report_tables(report: GraphReport) -> list[Table]:
    """The stages with their latencies, then the sinks from end to end."""
    stages = _table("stage", "in", "out", "dropped", "waited ms", "worked ms")
    sinks = _table(
        "sink", "frames", "seconds", "x real", "end to end ms", "late", "dropped", "gaps"
    )
    for node in report.nodes:
        counts = (node.frames_in, node.frames_out, node.dropped)
        latencies = _latency(node.queue_wait), _latency(node.processing)
        stages.add_row(shown_text(node.name), *map(str, counts), *latencies)
        if (sink := node.sink) is not None:
            late = "-" if report.deadline_ms is None else str(sink.deadline_misses)
            sinks.add_row(
                shown_text(node.name),
                str(node.frames_in),
                f"{sink.media_seconds:.2f}",
                f"{sink.realtime_factor:.2f}",
                _latency(sink.end_to_end),
                late,
                str(node.dropped),
                str(sink.gaps),
            )
    return [stages, sinks]


def print_report(report: GraphReport, devices: Sequence[str] = ()) -> None:
    """The tables of `report`, a caption that says how it ended, and what there is to say of it."""
    *tables, last = report_tables(report)
    on = f" on {' and '.join(devices)}" if devices else ""
    how = f"{report.outcome} after {report.wall_seconds:.2f} s{on}; latencies are p50 / p99 / max"
    if report.deadline_ms is not None:
        how += f"; late means more than {report.deadline_ms:g} ms"
    if report.lost:
        how += f"; {report.lost} frames were lost on their way"
    if report.abandoned:
        how += f"; left behind: {', '.join(report.abandoned)}"
    last.caption = shown_text(how)
    for table in (*tables, last):
        console.print(table)
    for sentence in report.sentences:
        console.print(shown_text(discreet(sentence)), soft_wrap=True)


def write_stats(report: GraphReport, path: Path, overwrite: bool = True) -> None:
    """The report as JSON. Raises OutputError."""
    content = discreet(json.dumps(report.as_dict(), indent=2)) + "\n"
    write_output(path, content.encode(), overwrite)


class RunDisplay:
    """How far a run over a data set is: one line that changes on a terminal, and elsewhere, as in
    the log of a job, a line now and then. Nothing where `quiet`."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._status: Status | None = None
        self._said_at = time.monotonic()
        self._ending = ""

    def __enter__(self) -> Self:
        if not self._quiet and console.is_terminal:
            self._status = console.status("loading")
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, figures: RunFigures) -> None:
        if self._status is not None:
            self._status.update(escape(self._ending + _run_line(figures)))
        elif not self._quiet and time.monotonic() - self._said_at >= SAY_SECONDS:
            self._said_at = time.monotonic()
            console.print(f"streamenc: {self._ending}{_run_line(figures)}", soft_wrap=True)

    def stopping(self, *, at_once: bool) -> None:
        """Somebody wants it to end."""
        self._ending = "ending at once; " if at_once else "ending with the shards in hand; "
        if self._status is None and not self._quiet:
            console.print(f"streamenc: {self._ending.rstrip('; ')}", soft_wrap=True)

    def report(self, figures: RunFigures, output: Path) -> None:
        """What came of it, in a few sentences."""
        if not self._quiet:
            for sentence in _run_sentences(figures, output):
                console.print(shown_text(sentence), soft_wrap=True)


def _run_line(figures: RunFigures) -> str:
    if figures.stage != "working":
        return figures.stage
    done = figures.parts_before + figures.parts_done
    parts = [f"{done} of {figures.parts} shards", f"{figures.items} items"]
    if figures.media_seconds:
        parts.append(_hours(figures.media_seconds))
        parts.append(f"{figures.hours_per_second:.3g} h/s, {figures.times_real_time:.0f}x")
        parts.append(f"bound by {figures.bound_by}")
    if figures.errors:
        parts.append(f"{figures.errors} errors")
    if figures.eta_seconds is not None:
        parts.append(f"{_clock(figures.eta_seconds)} left")
    return "  ".join(parts)


def _run_sentences(figures: RunFigures, output: Path) -> Iterator[str]:
    done = figures.parts_before + figures.parts_done
    set_is = f"{done} of {figures.parts} shards, {figures.set_items} items"
    yield f"{output}: {set_is}, {_hours(figures.set_seconds)}"
    if figures.parts_done and figures.media_seconds:
        spent = sum(figures.spent.values()) or 1.0
        shares = ", ".join(f"{what} {value / spent:.0%}" for what, value in figures.spent.items())
        workers = f"{figures.workers} worker{'s' * (figures.workers > 1)}"
        yield (
            f"{_hours(figures.media_seconds)} in {_clock(figures.working_seconds)}: "
            f"{figures.times_real_time:.0f} times real time, "
            f"{figures.times_real_time_per_worker:.0f} for each of {workers} ({shares})"
        )
    if figures.set_errors:
        yield f"{figures.set_errors} items are none, see {output / 'errors.jsonl'}"
        for reason, count in figures.reasons.items():
            yield f"  {count} times {reason}"
    if figures.deaths:
        yield f"{figures.deaths} workers ended in the middle of a shard, which was made again"
    if figures.verified:
        yield f"{figures.verified} items were encoded twice; {figures.differing} of them differed"
    if figures.stopped:
        yield "not all is done: run the same again to go on"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def print_rows(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on standard output, wide enough for its text where it goes into a pipe."""
    table = _table(*header, numbers=False)
    for row in rows:
        table.add_row(*(Text(shown_text(str(cell))) for cell in row))
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = 240
    out.print(table)


def print_named(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """As `print_rows`; a terminal that is too narrow for it gets each row's first cell, which is a
    name to be copied, on a line of its own."""
    rows = list(rows)
    width = sum(max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)) - 2
    out = Console(highlight=False, markup=False)
    if not out.is_terminal or width <= out.width:
        print_rows(header, rows)
        return
    for name, *cells, caption in rows:
        named = zip(header[1:-1], cells, strict=True)
        facts = [f"{what} {cell}" for what, cell in named if cell != "-"]
        out.print(Text(shown_text(name), style="bold"), soft_wrap=True)
        for line in (caption, ", ".join(facts)):
            out.print(Padding(Text(shown_text(line)), (0, 0, 0, 4), expand=False))


def print_json(value: Any) -> None:
    """`value` on standard output."""
    print(json.dumps(value, indent=2))


def print_text(text: str) -> None:
    """Plain text on standard output, line by line as it is."""
    Console(highlight=False, markup=False, soft_wrap=True).print(shown_lines(text))


def _table(*header: str, numbers: bool = True) -> Table:
    table = Table(
        box=None,
        show_header=any(header),
        header_style="bold",
        pad_edge=False,
        caption_justify="left",
    )
    for index, column in enumerate(header):
        table.add_column(column, justify="right" if numbers and index else "left", no_wrap=numbers)
    return table


def _latency(latency: Latency) -> str:
    if not latency.count:
        return "-"
    return _milliseconds(latency.p50_ms, latency.p99_ms, latency.max_ms)


def _milliseconds(*values: float) -> str:
    """Narrow enough for a terminal of 80 columns."""
    return " / ".join(f"{value:.2f}" if value < 10 else f"{value:.0f}" for value in values)
