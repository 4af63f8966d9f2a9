"""`chaos`: nodes, workers, disks, servers, signals, peers and brokers, broken on purpose."""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import failures
from tests.campaign.tally import write_part

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "examples" / "data" / "speech.flac"
# What is written as fast as a file is read, each on a disk of 64 KiB.
FEATURES = ("mel.arrows", "mel.jsonl", "mel.npz", "mel.parquet")
SOUNDS = ("voice.wav", "voice.flac")
# Of what hostile peers may cost a good neighbour; lateness follows the load of the machine.
LEAST_SHARE, MOST_MB = 0.9, 200.0


@dataclass
class Row:
    """Something that was broken so many times.

    Attributes:
        seen: What there is to tell of it, in words.
        faults: What was not as it should be.
    """

    part: str
    tried: int
    seen: str = ""
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


def nodes(minutes: float, seed: int) -> Iterable[Row]:
    tried, faults = failures.raising()
    yield Row("nodes that raise, at each call", tried, "the error names its node", faults)
    tried, faults = failures.hanging()
    yield Row("nodes that hang in a thread", tried, "left behind after a stop", faults)


def workers(minutes: float, seed: int) -> Iterable[Row]:
    from tests.bulk.test_exactly_once import BROKEN, ITEMS, PER_SHARD, SECONDS, prove
    from tests.support.bulkrun import Run
    from tests.support.bulkstub import StubTokenizer, stub_job, write_files

    kills = max(3, round(10 * minutes))
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        from streamenc.bulk.tokenizing import tokenize
        from streamenc.bulk.workers import solo

        files = write_files(Path(temporary) / "in", ITEMS, BROKEN)
        job = stub_job(files, PER_SHARD, seconds=SECONDS)
        undisturbed = Path(temporary) / "undisturbed"
        patch.setattr(solo, "Tokenizer", StubTokenizer)
        tokenize(job, undisturbed, workers=0)
        run = Run(job=job, output=str(Path(temporary) / "out"), workers=2)
        faults = []
        try:
            prove(run, undisturbed, kills, seed, 1.5)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            faults.append(f"seed {seed}: {error}"[:500])
    yield Row("`tokenize` and its workers, killed", kills, "the same bytes at the end", faults)


def disks(minutes: float, seed: int) -> Iterable[Row]:
    from tests.support.disk import fill, tiny_disk

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokens = folder / "tokens.arrows"
        _streamenc("encode", "-m", "nano", str(CLIP), str(tokens))
        faults = []
        for name in (*FEATURES, *SOUNDS):
            try:
                with tiny_disk(folder / name.replace(".", "-")) as disk:
                    out = disk / name
                    if name.endswith(".jsonl"):  # of features it holds their ranges only
                        fill(disk)
                    if name in SOUNDS:
                        code, said = _streamenc("decode", str(tokens), str(out))
                    else:
                        code, said = _streamenc("encode", "-m", "mel", str(CLIP), str(out))
            except pytest.skip.Exception as skipped:
                yield Row("full disks", 0, str(skipped))
                return
            if code != 1 or "Traceback" in said or "full" not in said:
                faults.append(f"{name}: exit code {code}, {said[-300:]}")
    yield Row("full disks, a kind of output each", len((*FEATURES, *SOUNDS)), "exit 1", faults)


def _streamenc(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "streamenc", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    return ran.returncode, ran.stderr


def servers(minutes: float, seed: int) -> Iterable[Row]:
    from tests.campaign.visitors import visited

    with tempfile.TemporaryDirectory() as temporary:
        told = asyncio.run(visited(Path(temporary), max(20.0, 15 * minutes), 12.0))
    counts = told["counts"]
    faults = [*told["faults"], *(["a traceback"] * told["tracebacks"])]
    killed = sum(count for name, count in counts.items() if "killed" in name or "ended by" in name)
    seen = f"{counts['clients']} clients, {counts.get('resumed', 0)} times resumed, exactly"
    yield Row("servers and their processes, ended and killed", killed, seen, faults)


def signals(minutes: float, seed: int) -> Iterable[Row]:
    rows: dict[tuple[str, str], Row] = {}
    for told in _others("signals", max(6, round(12 * minutes)), seed):
        key = told["command"], told["signal"]
        row = rows.setdefault(key, Row(f"`{key[0]}`, {key[1]}", 0))
        row.tried += 1
        row.faults += told["faults"]
        slowest = max(told["seconds"], float(row.seen.partition(" ")[0] or 0))
        row.seen = f"{slowest:g} s until it ended, at most"
    yield from rows.values()


def peers(minutes: float, seed: int) -> Iterable[Row]:
    for row in _others("peers", seed, max(1.0, min(8.0, 2 * minutes))):
        faults = []
        if row["got"] < LEAST_SHARE * row["due"]:
            faults.append(f"a good neighbour got {row['got']} of {row['due']} frames")
        if row["grown_mb"] > MOST_MB:
            faults.append(f"memory grew by {row['grown_mb']:.0f} MB")
        yield Row(f"ZeroMQ peers: {_name(row)}", 1, _told(row), faults)


def brokers(minutes: float, seed: int) -> Iterable[Row]:
    for row in _others("brokers", max(2, round(2 * minutes)), seed):
        faults = [f"{row[name]} {name}" for name in ("repeated", "out_of_order") if row[name]]
        if row["qos"] and row["lost"]:
            faults.append(f"{row['lost']} lost at QoS {row['qos']}")
        if row["lost"] != row["counted"]:
            faults.append(f"{row['lost']} lost, {row['counted']} counted")
        what = f"{row['broker']}, SIG{row['signal']}, QoS {row['qos']}, {row['hertz']}/s"
        seen = f"{row['received']} of {row['written']}, away {row['away_s']} s"
        yield Row(f"MQTT broker, {what}", row["restarts"], seen, faults)


def _others(module: str, *arguments: Any) -> list[dict[str, Any]]:
    name = f"tests.campaign.{module}"
    if find_spec(name) is None:
        return []
    run: Callable[..., list[dict[str, Any]]] = import_module(name).run
    return run(*arguments)


def _name(row: dict[str, Any]) -> str:
    return str(next(iter(row.values()), ""))


def _told(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in list(row.items())[1:])


PARTS = {part.__name__: part for part in (nodes, workers, disks, servers, signals, peers, brokers)}


def run(given: argparse.Namespace) -> int:
    from bench.harness import machine

    where = machine() if given.out else {}
    rows = []
    interrupted = False
    try:
        for name in given.only:
            began = time.monotonic()
            for row in PARTS[name](given.minutes / len(given.only), given.seed):
                row.seconds = round(time.monotonic() - began, 1)
                began = time.monotonic()
                rows.append(row)
    except KeyboardInterrupt:
        interrupted = True
    print_rows(rows)
    if given.out:
        found = {"seed": given.seed, "rows": [asdict(row) for row in rows]}
        write_part(given.out, "chaos", found, where)
    return 130 if interrupted else int(any(row.faults for row in rows))


def print_rows(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 130)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("what is broken", "times", "faults", "s", "seen"):
        numbers = column in ("times", "faults", "s")
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        cells = (row.part, str(row.tried), str(len(row.faults)), f"{row.seconds:.0f}", row.seen)
        table.add_row(*map(escape, cells), style="red" if row.faults else None)
    console.print(table)
    for row in rows:
        for fault in row.faults:
            console.print(escape(f"{row.part}: {fault}"), highlight=False)
