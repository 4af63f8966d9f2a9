"""Paired measuring: all take turns within one run, so that a noisy machine is noisy for all.

A ratio is the median over the rounds of (theirs / reference) within one round. A second,
independent copy of the reference may run along: how far the ratios of the same thing against itself
spread is the noise of the run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from bench import cores

PACKAGES = (
    "streamenc",
    "torch",
    "triton",
    "numpy",
    "numba",
    "onnxruntime",
    "transformers",
    "diffusers",
    "moshi",
    "rustymimi",
    "encodec",
    "pyzmq",
)
# Before each step: a live stream, too, comes back to a core that has rested.
PAUSE_SECONDS = 0.005
# Milliseconds by name and round.
Times = dict[str, dict[int, float]]


@dataclass(frozen=True, slots=True)
class Settings:
    """What all benchmarks are told.

    threads  Of a step.
    frames   To time, of 80 ms each.
    folder   For weights and other files of the run.
    quick    Only shows that all of it runs.
    small    Without the largest images.
    video    A clip to encode; None: one is made.
    cosmos   A diffusers folder of weights; None: random ones are made.
    only     Of the encoders, those whose name has it; of the tables of codecs, whose title has it.
    busy     A condition each: how many processes keep the cores busy meanwhile.
    """

    threads: int
    frames: int
    folder: Path
    quick: bool = False
    small: bool = False
    video: Path | None = None
    cosmos: Path | None = None
    only: str = ""
    busy: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Contestant:
    """One that is timed.

    step     Called with the number of the round, warm-up included. What it returns is dropped.
    every    It runs in each so-many-th round only, for calls that take long.
    units    Times are divided by it, for calls that do several units of work.
    note     Printed with its times.
    agreement  Share of its output that equals the reference's, where that was checked.
    """

    name: str
    step: Callable[[int], Any]
    every: int = 1
    units: int = 1
    note: str = ""
    agreement: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; times in milliseconds, nearest-rank percentiles. None: not measured.

    ratio      Median of (own time / reference's time) over the rounds: 2 is twice as slow.
    ratio_low, ratio_high  Between them lies that median with 95 % confidence.
    """

    name: str
    count: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    agreement: float | None = None
    note: str = ""
    min_ms: float | None = None

    @classmethod
    def of(cls, name: str, times_ms: Sequence[float], **more: Any) -> Row:
        """The row of some times, of which there is at least one."""
        p50, p90, p99 = (percentile(times_ms, percent) for percent in (50, 90, 99))
        low, high = min(times_ms), max(times_ms)
        return cls(name, len(times_ms), p50, p90, p99, high, min_ms=low, **more)


@dataclass(frozen=True, slots=True)
class Noise:
    """The reference against its own copy: the ratio would be 1 on a quiet machine.

    ratio     Median over the rounds.
    p10, p90  Of the rounds' ratios.
    """

    ratio: float
    p10: float
    p90: float

    def __str__(self) -> str:
        return (
            f"noise: the reference against its own copy {self.ratio:.3f}, "
            f"rounds from {self.p10:.2f} to {self.p90:.2f}"
        )


@dataclass(frozen=True, slots=True)
class Table:
    """What one run measured.

    unit       What one time is of: "ms per 80 ms frame".
    reference  The row that the ratios compare with; "" where there are none.
    facts      Whatever else belongs to it, by name: counts, settings.
    busy       Processes that kept the cores busy meanwhile.
    """

    title: str
    unit: str
    rows: list[Row]
    reference: str = ""
    threads: int = 1
    noise: Noise | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    busy: int = 0

    @property
    def condition(self) -> str:
        """How it was measured: "2 threads, 3 busy processes beside"."""
        return condition(self.threads, self.busy)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Table:
        """What `dataclasses.asdict` made of one."""
        noise = Noise(**plain["noise"]) if plain["noise"] else None
        return cls(**{**plain, "rows": [Row(**row) for row in plain["rows"]], "noise": noise})


def measure(
    title: str, unit: str, contestants: Sequence[Contestant], *, threads: int = 1, **how: Any
) -> Table:
    """Times all contestants in one condition; see `measure_each`."""
    [table] = measure_each((0,), title, unit, contestants, threads=threads, **how)
    return table


def measure_each(
    busy: Sequence[int],
    title: str,
    unit: str,
    contestants: Sequence[Contestant],
    *,
    reference: str,
    rounds: int,
    warmup: int,
    twin: Contestant | None = None,
    absent: Iterable[Row] = (),
    threads: int = 1,
    block: int = 1,
    pause_seconds: float = PAUSE_SECONDS,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> list[Table]:
    """Times all contestants, interleaved, in `rounds` rounds after `warmup` untimed ones, in each
    condition.

    Rounds come in blocks: in each block all contestants take turns, for its rounds on end. Each
    block goes through them in another order: the start moves on, and every second block runs
    backward, so that nobody always follows the same neighbour. Of several conditions, each has half
    of its rounds, then in reverse order the other half: each half is long enough for those that
    adapt themselves to the cores, which they do in the untimed rounds before it.

    busy       A condition each: how many other processes keep the cores busy meanwhile.
    reference  The contestant that ratios compare with; it runs in every round.
    twin       An independent copy of it, for the noise.
    absent     Rows for those that cannot run.

    Returns:
        A table for each condition.
    """
    entrants = [*contestants, *([twin] if twin else [])]
    by_name = {contestant.name: contestant for contestant in entrants}
    assert len(by_name) == len(entrants), "names are unique"
    assert by_name[reference].every == 1 and rounds > 0
    times: list[Times] = [{name: {} for name in by_name} for _ in busy]
    restless: set[str] = set()

    def turn(contestant: Contestant, numbers: range, timed: range, found: dict[int, float]) -> None:
        if not cores.settle(pause_seconds):
            restless.add(contestant.name)
        for number in numbers:
            due = number in timed and (number + 1) % contestant.every == 0
            # Everyone is warmed up at least once, the long calls too.
            since = number - (timed.start - warmup)
            warms = number < timed.start and since < warmup // contestant.every + 1
            if not (due or warms):
                continue
            time.sleep(pause_seconds)
            start_ns = clock_ns()
            contestant.step(warmup + number)
            elapsed_ns = clock_ns() - start_ns
            if due:
                found[number] = elapsed_ns / contestant.units / 1e6

    before = cores.load_average()
    with cores.Busy(max(busy)) as working:
        others = [cores.OthersCpu(working) for _ in busy]
        for meter in others:
            meter.stop()
        blocks = 0
        for position, timed in _halves(len(busy), rounds):
            working.keep(busy[position])
            others[position].go()
            for start in range(timed.start - warmup, timed.stop, block):
                numbers = range(start, min(start + block, timed.stop))
                for contestant in _order(entrants, blocks):
                    turn(contestant, numbers, timed, times[position][contestant.name])
                blocks += 1
            others[position].stop()
    after = cores.load_average()
    made = []
    for count, found, meter in zip(busy, times, others, strict=True):
        rows = [_row(contestant, found, by_name[reference]) for contestant in entrants]
        noise = None
        if twin:
            ratios = paired_ratios(found[twin.name], found[reference], 1)
            noise = Noise(median(ratios), percentile(ratios, 10), percentile(ratios, 90))
        facts = {
            "CPU used by others meanwhile": str(meter),
            "load average before and after": f"{before} and {after}",
        }
        if restless:
            facts["begun while threads before still spun"] = ", ".join(sorted(restless))
        rows += absent
        made.append(Table(title, unit, rows, reference, threads, noise, facts, count))
    return made


def _halves(conditions: int, rounds: int) -> list[tuple[int, range]]:
    """Which condition is on and which of its rounds these are, one after the other."""
    if conditions == 1:
        return [(0, range(rounds))]
    half = (rounds + 1) // 2
    first = [(position, range(half)) for position in range(conditions)]
    return first + [(position, range(half, rounds)) for position, _ in first[::-1] if half < rounds]


def _order(contestants: Sequence[Contestant], index: int) -> list[Contestant]:
    start = index // 2 % len(contestants)
    order = [*contestants[start:], *contestants[:start]]
    return order[::-1] if index % 2 else order


def _row(contestant: Contestant, times: Times, reference: Contestant) -> Row:
    own = times[contestant.name]
    about: dict[str, Any] = {"agreement": contestant.agreement, "note": contestant.note}
    if not own:
        return Row(contestant.name, **{**about, "note": "not run: too few rounds"})
    if contestant is reference:
        return Row.of(contestant.name, list(own.values()), ratio=1.0, **about)
    ratios = paired_ratios(own, times[reference.name], contestant.every)
    low, high = median_interval(ratios)
    return Row.of(
        contestant.name,
        list(own.values()),
        ratio=median(ratios),
        ratio_low=low,
        ratio_high=high,
        **about,
    )


def paired_ratios(own: dict[int, float], other: dict[int, float], every: int) -> list[float]:
    """Own times over the other's, by round; a call that comes every k rounds is paired with the
    median of the k rounds up to it."""
    return [
        value / median(other[i] for i in range(index - every + 1, index + 1))
        for index, value in own.items()
    ]


def percentile(values: Sequence[float], percent: float) -> float:
    """What `percent` of the values do not exceed, by nearest rank; always one of the values."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the median lies with 95 % confidence, by order statistics: for any distribution."""
    ordered = sorted(values)
    half_width = 0.98 * math.sqrt(len(ordered))
    low = max(0, math.floor(len(ordered) / 2 - half_width))
    high = min(len(ordered) - 1, math.ceil(len(ordered) / 2 + half_width) - 1)
    return ordered[low], ordered[max(low, high)]


def condition(threads: int, busy: int) -> str:
    """In words: with how many threads, and beside how many busy processes."""
    beside = f", {busy} busy process{'es' * (busy > 1)} beside" if busy else ""
    return f"{threads} thread{'s' * (threads > 1)}{beside}"


def count(text: str) -> int:
    """An option that counts something. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; wanted a number from 1 up")
    return int(text)


def counts(text: str) -> list[int]:
    """Several of them, with commas between. Raises ArgumentTypeError."""
    return [count(part) for part in text.split(",")]


def loads(text: str) -> list[int]:
    """Numbers of busy processes, with commas between; 0 is one. Raises ArgumentTypeError."""
    return [0 if part == "0" else count(part) for part in text.split(",")]


def machine() -> dict[str, Any]:
    """Where and with what is measured: to be asked before, as a checkout may change meanwhile."""
    from streamenc_kernels import packing_choice  # torch, which other users of this file do without

    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "packed_linear": packing_choice(),
        "versions": versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _commit() -> str | None:
    """The commit of this checkout, with a plus where it was changed; None outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + "+" * bool(
            git("status", "--porcelain", "--untracked-files=no")
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(
    path: Path,
    name: str,
    tables: Sequence[Table],
    settings: dict[str, Any],
    where: dict[str, Any],
) -> None:
    """The tables with `where`, what `machine` said before the run; the folder is made."""
    plain = {
        "name": name,
        "machine": where,
        "settings": settings,
        "tables": [asdict(table) for table in tables],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plain, indent=1) + "\n")


def print_tables(tables: Iterable[Table]) -> None:
    """Each table with its noise, as wide as it must be."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Printed

    console = Console()
    # A log is not a terminal of 80 columns.
    console.width = max(console.width, 130)
    for table in tables:
        printed = Printed(
            title=f"{table.title}, {table.condition} ({table.unit})",
            title_justify="left",
            box=box.SIMPLE_HEAD,
        )
        columns = ["", "p50", "p90", "p99", "max", "count"]
        with_ratio = bool(table.reference)
        if with_ratio:
            columns += [f"x {table.reference}", "95 %", "agrees"]
        for column in columns:
            printed.add_column(column, justify="right" if column else "left")
        printed.add_column("", max_width=44)
        for row in table.rows:
            cells = [row.name, *map(_ms, (row.p50_ms, row.p90_ms, row.p99_ms, row.max_ms))]
            cells.append(str(row.count) if row.count else "")
            if with_ratio:
                cells += [_number(row.ratio), _interval(row), _share(row.agreement)]
            printed.add_row(*cells, row.note)
        console.print(printed if table.rows else f"{table.title}:")
        if table.noise:
            console.print(f"  {table.noise}")
        for key, value in table.facts.items():
            console.print(f"  {key}: {value}")


def _ms(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 1000 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(row: Row) -> str:
    return "" if row.ratio_low is None else f"{row.ratio_low:.2f}-{row.ratio_high:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
