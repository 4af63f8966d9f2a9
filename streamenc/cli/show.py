"""What the command line shows: progress, reports, and tables of models, devices and files."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from streamenc.errors import OutputError
from streamenc.graph.report import GraphReport

if TYPE_CHECKING:
    from streamenc.graph.graph import Graph
    from streamenc.latency import Latency

# Reports go to standard error: standard output belongs to the tokens.
console = Console(stderr=True, highlight=False, markup=False)
if not console.is_terminal:
    console.width = 120
REFRESH_SECONDS = 0.25


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
        stages.add_row(node.name, *map(str, counts), *latencies)
        if (sink := node.sink) is not None:
            late = "-" if report.deadline_ms is None else str(sink.deadline_misses)
            sinks.add_row(
                node.name,
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
    last.caption = how
    for table in (*tables, last):
        console.print(table)
    for sentence in report.sentences:
        console.print(sentence, soft_wrap=True)


def write_stats(report: GraphReport, path: Path) -> None:
    """The report as JSON. Raises OutputError."""
    try:
        path.write_text(json.dumps(report.as_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def print_rows(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table on standard output, wide enough for its text where it goes into a pipe."""
    table = _table(*header, numbers=False)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
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
        out.print(Text(name, style="bold"), soft_wrap=True)
        for line in (caption, ", ".join(facts)):
            out.print(Padding(Text(line), (0, 0, 0, 4), expand=False))


def print_json(value: Any) -> None:
    """`value` on standard output."""
    print(json.dumps(value, indent=2))


def print_text(text: str) -> None:
    """Plain text on standard output, as it is."""
    Console(highlight=False, markup=False, soft_wrap=True).print(text)


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
