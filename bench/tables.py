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

from bench.harness import condition

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
PLACE = re.compile(r"(<!-- results: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
# The reference's own copy, which shows the noise of a run.
COPIES = ("streamenc (copy)", "the reference once more")
PEERS = ("moshi", "rustymimi", "transformers", "encodec")
MIMI_STEPS = tuple(
    f"Mimi {what} codebooks, one stream" for what in ("encode, 8", "encode, 32", "decode, 8")
)
# What the README shows of our own, and how it is called there.
HEADLINE = {
    "streamenc, compiled, int16": "compiled",
    "streamenc": "in torch",
    "streamenc, ONNX step, float32": "as ONNX step",
}


def run(name: str) -> dict[str, Any]:
    """What bench/results/NAME.json holds."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def where(found: dict[str, Any]) -> str:
    """The machine, its load before, the day and the versions of a run, as a line."""
    machine = found["machine"]
    load = machine.get("load_average")
    packages = ", ".join(
        f"{package} {version}"
        for package, version in machine["versions"].items()
        if package not in ("python", "streamenc")
    )
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}"
        f"{f', load average before {load[0]:.1f}' if load else ''}; "
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
        parts.append(f"**{table['title']}**, {_condition(table)}\n")
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


def steps(*beginnings: str) -> str:
    """Tables of codecs whose title begins so: all contestants, in all conditions side by side."""
    found = run("codecs")
    titles = dict.fromkeys(table["title"] for table in found["tables"])
    parts = [where(found) + "\n"]
    for title in titles:
        if title.startswith(beginnings):
            parts.append(_side_by_side(title, _conditions(title)))
    return "\n".join(parts)


def _condition(table: dict[str, Any]) -> str:
    return condition(table["threads"], table.get("busy", 0))


def _conditions(title: str) -> dict[str, dict[str, Any]]:
    """The tables of one title, by their condition."""
    tables = [table for table in run("codecs")["tables"] if table["title"] == title]
    return {_condition(table): table for table in tables}


def _side_by_side(title: str, tables: dict[str, dict[str, Any]]) -> str:
    first = next(iter(tables.values()))
    names = dict.fromkeys(
        row["name"]
        for table in tables.values()
        for row in table["rows"]
        if row["name"] not in COPIES
    )
    lines = []
    for name in names:
        rows = [_named(table, name) for table in tables.values()]
        [some] = [row for row in rows if row is not None][:1]
        equal = "" if some["agreement"] is None else f"{some['agreement']:.3f}"
        lines.append([name, *map(_both, rows), equal, some["note"]])
    head = [f"{first['unit']}, p50 / p99", *tables, "same codes", ""]
    # Without columns in which nothing stands.
    kept = [index for index in range(len(head)) if any(line[index] for line in lines)]
    text = markdown(
        [head[index] for index in kept], [[line[index] for index in kept] for line in lines]
    )
    noise = [table["noise"]["ratio"] for table in tables.values() if table["noise"]]
    others = [table["facts"]["CPU used by others meanwhile"] for table in tables.values()]
    facts = "In the order of the columns: "
    if noise:
        facts += f"noise {', '.join(f'{ratio:.2f}' for ratio in noise)}; "
    facts += f"CPU used by others {', '.join(others)}.\n"
    return f"**{title}**\n\n{text}\n{facts}"


def _named(table: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((row for row in table["rows"] if row["name"] == name), None)


def _both(row: dict[str, Any] | None) -> str:
    """p50 and p99."""
    if row is None or row["p50_ms"] is None:
        return "-"
    return f"{ms(row['p50_ms'])} / {ms(row['p99_ms'])}"


def _is_peer(row: dict[str, Any]) -> bool:
    """Whether it is a peer that streams."""
    streams = not row["note"].startswith("no streaming")
    return row["name"] in PEERS and streams and row["p50_ms"] is not None


def speedups() -> str:
    """How many times as fast as the fastest peer our ways are, for each step of Mimi."""
    conditions = dict.fromkeys(
        condition for title in MIMI_STEPS for condition in _conditions(title)
    )
    lines = []
    for title in MIMI_STEPS:
        tables = _conditions(title)
        names = dict.fromkeys(
            row["name"]
            for table in tables.values()
            for row in table["rows"]
            if row["name"] not in (*PEERS, *COPIES)
        )
        for name in names:
            cells = [_times_as_fast(tables[condition], name) for condition in conditions]
            lines.append([title.removesuffix(", one stream"), name, *cells])
    head = ["times as fast as the fastest peer: of p50s (of minima)", "", *conditions]
    return markdown(head, lines)


def _times_as_fast(table: dict[str, Any], name: str) -> str:
    row = _named(table, name)
    peers = [row for row in table["rows"] if _is_peer(row)]
    if row is None or row["p50_ms"] is None or not peers:
        return "-"
    text = f"{min(peer['p50_ms'] for peer in peers) / row['p50_ms']:.2f}"
    if row.get("min_ms"):
        text += f" ({min(peer['min_ms'] for peer in peers) / row['min_ms']:.2f})"
    return text


def capacity() -> str:
    """How many live streams of Mimi keep up, in each way in which their frames may be due."""
    knees = {}
    for table in run("sessions")["tables"]:
        found = {
            fact.removeprefix("knee of "): said.removesuffix(" streams")
            for fact, said in table["facts"].items()
            if fact.startswith("knee of ")
        }
        knees[table["title"].partition("due ")[2]] = found
    names = dict.fromkeys(name for found in knees.values() for name in found)
    rows = [[due, *(found.get(name, "-") for name in names)] for due, found in knees.items()]
    return markdown(["frames are due", *names], rows)


def headline() -> str:
    """The figures that the README shows."""
    tables = {title: _conditions(title)[condition(1, 0)] for title in MIMI_STEPS}
    shown = {
        name: called
        for name, called in HEADLINE.items()
        if all((row := _named(table, name)) and row["p50_ms"] for table in tables.values())
    }
    lines = []
    for title, table in tables.items():
        ours = [_named(table, name) for name in shown]
        peer = min(filter(_is_peer, table["rows"]), key=lambda row: row["p50_ms"])
        cells = [f"{ms(row['p50_ms'])} ms" for row in ours if row is not None]
        name = title.replace("one stream", "a frame of 80 ms")
        lines.append([name, *cells, f"{ms(peer['p50_ms'])} ms ({peer['name']})"])
    head = ["one stream, one thread, at the median", *shown.values(), "fastest peer"]
    mel, mimi = (_to_another_process(name) for name in ("mel", "mimi"))
    facts = run("sessions")["tables"][0]["facts"]
    knees = {
        fact.removeprefix("knee of streamenc").removeprefix(", ") or "in torch": said
        for fact, said in facts.items()
        if fact.startswith("knee of streamenc")
    }
    how, streams = max(knees.items(), key=lambda knee: int(knee[1].split()[0]))
    return (
        markdown(head, lines)
        + "\n- From a file played in real time to a subscriber in another process over ZeroMQ: "
        + f"{ms(mel)} ms at the median for mel, {ms(mimi)} ms for full-size Mimi.\n"
        + f"- Full-size Mimi, live, that two cores keep up with: {streams} ({how}).\n"
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


def campaign() -> str:
    """What hostile inputs, soaks and chaos came to, each with its machine and day."""
    found = run("campaign")
    parts = []
    if fuzzed := found.get("fuzz"):
        parts.append(_fuzzed(fuzzed["found"]["targets"]))
        parts.append(where(fuzzed) + "\n")
    if soaked := found.get("soak"):
        parts.append(_soaked(soaked["found"]))
        parts.append(where(soaked) + "\n")
    if broken := found.get("chaos"):
        rows = [
            [row["part"], str(row["tried"]), str(len(row["faults"])), row["seen"]]
            for row in broken["found"]["rows"]
        ]
        parts.append(f"**Chaos**\n\n{markdown(['what is broken', 'times', 'faults', ''], rows)}")
        parts.append(where(broken) + "\n")
    return "\n".join(parts)


def _fuzzed(targets: list[dict[str, Any]]) -> str:
    counts = ("cases", "refused", "taken", "foreign", "over", "crashes")
    rows = [
        [
            f"`{target['target']}`",
            *(f"{target[count]:,}" for count in counts),
            f"{target['worst_seconds']:.2f}",
            f"{target['worst_bytes'] / 2**20:.0f}",
        ]
        for target in targets
    ]
    total = [f"**{sum(target[count] for target in targets):,}**" for count in counts]
    head = ["target", "cases", "refused", "accepted", "foreign exceptions", "hang / memory"]
    head += ["crash", "worst s", "worst MB"]
    return f"**Hostile inputs**\n\n{markdown(head, [*rows, ['', *total, '', '']])}"


def _soaked(found: dict[str, Any]) -> str:
    def change(name: str) -> str:
        first, last = found[name]
        return f"{first:g} -> {last:g}"

    counts = found["visits"].get("counts", {})
    rows = [
        ["frames written / recorded", f"{found['frames']:,} / {found['recorded']:,}"],
        ["gaps / dropped", f"{found['gaps']} / {found['dropped']}"],
        *(
            [f"subscriber of {mode}", f"{heard['frames']:,} of {found['published'][mode]:,}"]
            for mode, heard in found["subscribers"].items()
        ),
        ["in = out + dropped + in flight on every edge", "yes" if found["accounts"] else "no"],
        ["RSS, MB; slope", f"{change('rss_mb')}; {found['rss_mb_per_hour']:g} MB/h"],
        [
            "latency p50, ms; p99; worst",
            f"{change('p50_ms')}; {found['p99_ms']:g}; {found['max_ms']:g}",
        ],
        *([name, change(name)] for name in ("fds", "threads", "tasks")),
        [
            "clients of the server beside / resumed",
            f"{counts.get('clients', 0)} / {counts.get('resumed', 0)}",
        ],
        ["faults", str(len(found["faults"]))],
    ]
    title = f"**Soak**, {found['streams']} streams, {found['seconds'] / 60:g} minutes"
    return f"{title}\n\n{markdown(['', ''], rows)}"


TABLES: dict[str, Callable[[], str]] = {
    "campaign": campaign,
    "headline": headline,
    "speedups": speedups,
    "mimi": lambda: steps("Mimi "),
    "encodec": lambda: steps("EnCodec "),
    "nano": lambda: steps("nano "),
    "capacity": capacity,
    "quality": quality,
    "whisper": whisper,
    "engine-all": lambda: everything("engine"),
    "features-all": lambda: everything("features"),
    "latency-all": lambda: everything("latency"),
    "sessions-all": lambda: everything("sessions"),
    "serve-all": lambda: everything("serve"),
    "tokenize-all": lambda: everything("tokenize"),
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
