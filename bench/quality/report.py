"""What `bench.quality` found: its tables, its JSON, and its curves over the bitrate."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.quality.measures import Estimate
from streamenc.io.files.output import output_error

# The measures by name: their heading, and how they are written.
MEASURES = {
    "pesq": ("PESQ-wb", ".2f"),
    "stoi": ("STOI", ".3f"),
    "visqol": ("ViSQOL", ".2f"),
    "si_sdr_db": ("SI-SDR dB", ".1f"),
    "wer": ("WER", ".3f"),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What one condition gave.

    kbps        Measured, kbit/s.
    measures    By the names in MEASURES; those that were not taken are missing.
    utterances  The same for each clip, and its name, its lag in samples and its transcript.
    """

    codec: str
    codebooks: int | None
    nominal_kbps: float
    kbps: float
    measures: dict[str, Estimate]
    utterances: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Book:
    """How a codebook is used over the whole folder.

    frames      That were counted: a book cannot use more entries than there were frames.
    perplexity  2 to the power of its entropy in bits: that many entries, used equally, say as much.
    used        The share of its entries that occur.
    """

    model: str
    book: int
    entries: int
    frames: int
    perplexity: float
    used: float


@dataclass(frozen=True, slots=True)
class Probe:
    """A signal that is no speech, decoded. Levels in dB of full scale; relative ones in dB.

    peak_change_db, rms_change_db  Output against input; None where the input is silent.
    """

    model: str
    codebooks: int
    signal: str
    finite: bool
    peak_db: float
    rms_db: float
    peak_change_db: float | None
    rms_change_db: float | None


@dataclass(frozen=True, slots=True)
class Pieces:
    """How far decoding in pieces of about 20 ms differs from decoding at once, at the most.

    largest_difference  Of two samples, full scale being 1; infinity where the lengths differ.
    """

    model: str
    codebooks: int
    piece_seconds: float
    seconds: float
    largest_difference: float


@dataclass(slots=True)
class Report:
    """All that was measured so far; `notes` say what a reader of the tables should know."""

    results: list[Result] = field(default_factory=list)
    books: list[Book] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    pieces: list[Pieces] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def print_report(report: Report) -> None:
    """The tables, as wide as they must be, and the notes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    # A log is not a terminal of 80 columns.
    console.width = max(console.width, 110)
    for title, columns, rows in _tables(report):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for column in columns:
            named = column in ("codec", "model", "signal")
            table.add_column(column, justify="left" if named else "right")
        for row in rows:
            table.add_row(*map(str, row))
        if rows:
            console.print(table)
    for note in report.notes:
        console.print(f"  {note}")


def _tables(report: Report) -> Iterator[tuple[str, list[str], list[tuple[Any, ...]]]]:
    """Title, columns and rows."""
    taken = [name for name in MEASURES if any(name in r.measures for r in report.results)]
    yield (
        "Quality, against the original at 16 kHz",
        ["codec", "codebooks", "kbit/s", *(MEASURES[name][0] for name in taken), "n"],
        [
            (
                r.codec,
                r.codebooks or "",
                f"{r.kbps:.2f}",
                *(_estimate(r.measures[name], name) for name in taken),
                len(r.utterances),
            )
            for r in report.results
        ],
    )
    yield (
        "Use of codebooks",
        ["model", "codebook", "perplexity", "of", "used", "in frames"],
        [
            (b.model, b.book, f"{b.perplexity:.1f}", b.entries, f"{b.used:.1%}", b.frames)
            for b in report.books
        ],
    )
    yield (
        "What is no speech: levels that come out, and their change in dB",
        ["model", "codebooks", "signal", "peak dBFS", "RMS dBFS", "peak", "RMS", "finite"],
        [
            (
                p.model,
                p.codebooks,
                p.signal,
                f"{p.peak_db:.1f}",
                f"{p.rms_db:.1f}",
                _change(p.peak_change_db),
                _change(p.rms_change_db),
                "yes" if p.finite else "NO",
            )
            for p in report.probes
        ],
    )
    yield (
        "Decoded in pieces and at once: full scale is 1",
        ["model", "codebooks", "pieces of", "seconds", "largest difference"],
        [
            (
                p.model,
                p.codebooks,
                f"{p.piece_seconds * 1000:.0f} ms",
                f"{p.seconds:.1f}",
                f"{p.largest_difference:.1e}",
            )
            for p in report.pieces
        ],
    )


def _estimate(value: Estimate, name: str) -> str:
    if not value.count:
        return "-"
    form = MEASURES[name][1]
    text = format(value.mean, form)
    return f"{text} [{value.low:{form}}, {value.high:{form}}]" if name == "pesq" else text


def _change(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1f}"


def write_json(path: Path, report: Report, settings: dict[str, Any], where: dict[str, Any]) -> None:
    """The report with `where`, what `machine` said before the run. Raises OutputError."""
    plain = _rounded({"name": "quality", "machine": where, "settings": settings, **asdict(report)})
    _write(path, (json.dumps(plain, indent=1, allow_nan=False) + "\n").encode())


def _rounded(value: Any) -> Any:
    """Floats to five digits, and None for those that JSON does not know."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


def draw(report: Report, path: Path) -> None:
    """PESQ, STOI and, where it was taken, WER over kbit/s. Raises OutputError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [n for n in ("pesq", "stoi", "wer") if all(n in r.measures for r in report.results)]
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for codec in dict.fromkeys(result.codec for result in report.results):
            mine = [result for result in report.results if result.codec == codec]
            mine.sort(key=lambda result: result.kbps)
            values = [result.measures[name] for result in mine]
            below, above = ([v.mean - v.low for v in values], [v.high - v.mean for v in values])
            axes.errorbar(
                [result.kbps for result in mine],
                [value.mean for value in values],
                yerr=(below, above),
                label=codec,
                marker="o",
                markersize=4,
                capsize=2,
                linestyle="--" if codec == "Opus" else "-",
            )
        axes.set_xlabel("kbit/s")
        axes.set_ylabel(MEASURES[name][0])
        axes.set_ylim(bottom=0 if name == "wer" else None)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, dpi=120, format="png")
    _write(path, image.getvalue())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise output_error(str(path), error) from error
