"""`python -m bench.tables`: writes what was measured into the pages that show it.

A page says where, by `<!-- results: NAME -->` and `<!-- end -->`; what stands between the two comes
from bench/results and is never typed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PLACE = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# The reference's own copy, which shows the noise of a run.
COPIES = ("streamenc (copy)", "the reference once more")
# The columns of the table of Mimi, and their rows in codecs.json.
MIMI_COLUMNS = {
    "streamenc": "streamenc",
    "ONNX step": "streamenc, ONNX step, float32",
    "int16": "streamenc, ONNX step, int16",
    "int8": "streamenc, ONNX step, int8",
    "moshi": "moshi",
    "rustymimi": "rustymimi",
    "transformers": "transformers",
}
PEERS = ("moshi", "rustymimi", "transformers")
MIMI_STEPS = tuple(f"Mimi {what} codebooks" for what in ("encode, 8", "encode, 32", "decode, 8"))


def run(name: str) -> dict[str, Any]:
    """What bench/results/NAME.json holds."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def where(found: dict[str, Any]) -> str:
    """The machine, the day and the versions of a run, as a line."""
    machine = found["machine"]
    packages = ", ".join(
        f"{package} {version}"
        for package, version in machine["versions"].items()
        if package not in ("python", "streamenc")
    )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; "
        f"{machine['date'][:10]}; Python {machine['versions']['python']}, {packages}."
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def ms(value: float | None) -> str:
    """Three digits or so of a time; "-" where none was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def everything(name: str) -> str:
    """All tables of a run, each row with its percentiles and its ratio to the reference."""
    found = run(name)
    parts = [where(found) + "\n"]
    for table in found["tables"]:
        threads = f"{table['threads']} thread{'s' * (table['threads'] > 1)}"
        parts.append(f"**{table['title']}**, {threads}\n")
        rows = [row for row in table["rows"] if row["name"] not in COPIES]
        if rows:
            parts.append(_rows(table, rows))
        if table["noise"]:
            parts.append(f"Noise, the reference against itself: {table['noise']['ratio']:.3f}.\n")
        if table["facts"]:
            parts.append("".join(f"- {fact}: {said}\n" for fact, said in table["facts"].items()))
    return "\n".join(parts)


def _rows(table: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        table["unit"]: lambda row: row["name"],
        "p50": lambda row: ms(row["p50_ms"]),
        "p90": lambda row: ms(row["p90_ms"]),
        "p99": lambda row: ms(row["p99_ms"]),
        f"times {table['reference']}": _ratio,
        "same codes": lambda row: "" if row["agreement"] is None else f"{row['agreement']:.3f}",
        "": lambda row: row["note"],
    }
    texts = {head: [text(row) for row in rows] for head, text in columns.items()}
    shown = {head: cells for head, cells in texts.items() if any(cells)}
    return markdown(list(shown), zip(*shown.values(), strict=True))


def _ratio(row: dict[str, Any]) -> str:
    if row["ratio"] is None or row["ratio_low"] is None:
        return ""
    return f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"


def mimi() -> str:
    """A step of Mimi in all its variants, beside the published implementations."""
    rows = []
    for threads in run("codecs")["settings"]["threads"]:
        for title in MIMI_STEPS:
            times = _mimi_times(title, threads)
            cells = [times[column] for column in MIMI_COLUMNS]
            rows.append([title, str(threads), *(ms(time) if time else "none" for time in cells)])
    return markdown(["ms for a frame of 80 ms", "threads", *MIMI_COLUMNS], rows)


def _mimi_times(title: str, threads: int) -> dict[str, float]:
    """By column, ms a step; 0 where an implementation has no such step."""
    [table] = [
        table
        for table in run("codecs")["tables"]
        if table["title"] == f"{title}, one stream" and table["threads"] == threads
    ]
    rows = {row["name"]: row for row in table["rows"]}
    return {
        column: 0.0 if rows[name]["note"].startswith("no streaming") else rows[name]["p50_ms"]
        for column, name in MIMI_COLUMNS.items()
    }


def speedups() -> str:
    """How many times as fast as the fastest peer, over all rows of the table of Mimi."""
    threads = run("codecs")["settings"]["threads"]
    times = [_mimi_times(title, count) for count in threads for title in MIMI_STEPS]
    rows = []
    for column in MIMI_COLUMNS:
        if column not in PEERS:
            ratios = [min(row[peer] for peer in PEERS if row[peer]) / row[column] for row in times]
            rows.append([column, f"{min(ratios):.1f} to {max(ratios):.1f}"])
    return markdown(["", "times as fast as the fastest of the three"], rows)


def capacity() -> str:
    """How many live streams of Mimi keep up, in each way in which their frames may be due."""
    columns = {
        "streamenc": "in torch",
        "streamenc, ONNX step": "ONNX steps",
        "moshi": "moshi",
    }
    rows = []
    for table in run("sessions")["tables"]:
        due = table["title"].partition("due ")[2]
        knees = [table["facts"].get(f"knee of {name}", "-") for name in columns]
        rows.append([due, *(knee.removesuffix(" streams") for knee in knees)])
    return markdown(["frames are due", *columns.values()], rows)


def headline() -> str:
    """The figures that the README shows."""
    rows = []
    for title in MIMI_STEPS:
        times = _mimi_times(title, 1)
        ours = [f"{ms(times[column])} ms" for column in ("streamenc", "ONNX step")]
        name, fastest = min((times[peer], peer) for peer in PEERS if times[peer])[::-1]
        rows.append([f"{title}, a frame of 80 ms", *ours, f"{ms(fastest)} ms ({name})"])
    head = ["one stream, one thread, float32", "streamenc", "its ONNX step", "fastest peer"]
    mel, mimi = (_to_another_process(name) for name in ("mel", "mimi"))
    streams = run("sessions")["tables"][0]["facts"]["knee of streamenc, ONNX step"]
    return (
        markdown(head, rows)
        + "\n- From a file played in real time to a subscriber in another process over ZeroMQ: "
        + f"{ms(mel)} ms at the median for mel, {ms(mimi)} ms for full-size Mimi.\n"
        + f"- Full-size Mimi, live, that two cores keep up with: {streams}.\n"
    )


def _to_another_process(model: str) -> float:
    """ms at the median, from a file to a subscriber."""
    [table] = [t for t in run("latency")["tables"] if t["title"].startswith(f"{model}: ")]
    [row] = [row for row in table["rows"] if row["name"] == "all, to the other process"]
    median: float = row["p50_ms"]
    return median


def quality() -> str:
    """nano and Opus at their bitrates."""
    rows = []
    for result in run("quality")["results"]:
        name = result["codec"]
        if result["codebooks"]:
            name += f", {result['codebooks']} codebooks"
        measures = {measure: found["mean"] for measure, found in result["measures"].items()}
        rows.append(
            [
                name,
                f"{result['kbps']:.1f}",
                f"{measures['pesq']:.2f}",
                f"{measures['stoi']:.3f}".lstrip("0"),
                f"{measures['visqol']:.2f}",
                f"{measures['si_sdr_db']:.1f}",
                f"{measures['wer']:.3f}".lstrip("0"),
            ]
        )
    return markdown(["codec", "kbit/s", "PESQ-wb", "STOI", "ViSQOL", "SI-SDR dB", "WER"], rows)


def whisper() -> str:
    """Fidelity of Whisper's streamed states against latency and cost."""
    rows = []
    for point in run("whisper")["points"]:
        latency = point["latency_seconds"]
        rows.append(
            [
                point["name"],
                f"{latency:.3g} s" if point["step_ms"] else "at the end",
                f"{point['wer']:.3f}",
                " ".join(f"{cosine:.3f}" for cosine in point["cosine"][1:]),
                f"{point['ms'] / 10:.1f} %",
                f"{point['step_ms']:.0f} ms" if point["step_ms"] else "",
            ]
        )
    head = ["tiny.en", "latency", "WER", "cosine, layers 1 to 4", "core", "step"]
    return markdown(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "mimi": mimi,
    "speedups": speedups,
    "capacity": capacity,
    "quality": quality,
    "whisper": whisper,
    "codecs-all": lambda: everything("codecs"),
    "nano-all": lambda: everything("nano"),
    "engine-all": lambda: everything("engine"),
    "features-all": lambda: everything("features"),
    "latency-all": lambda: everything("latency"),
    "sessions-all": lambda: everything("sessions"),
    "serve-all": lambda: everything("serve"),
    "video-all": lambda: everything("video"),
    "whisper-all": lambda: everything("whisper"),
}


def filled(text: str) -> str:
    """The page with its tables as they were measured. KeyError: it asks for one that is unknown."""
    return PLACE.sub(lambda place: f"{place[1]}\n{TABLES[place[2]]()}\n{place[4]}", text)


def pages() -> Iterator[Path]:
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").rglob("*.md"))


def drifted() -> list[Path]:
    """Pages that show something else than what was measured."""
    return [page for page in pages() if filled(text := page.read_text(encoding="utf-8")) != text]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tables",
        description="Writes the tables of bench/results into the README and the pages of docs.",
    )
    parser.add_argument("--check", action="store_true", help="only say which pages have drifted")
    args = parser.parse_args(arguments)
    stale = drifted()
    for page in stale:
        if not args.check:
            page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {'has drifted' if args.check else 'written'}")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
