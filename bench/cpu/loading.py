"""How long a new process takes to its first live frame, the first time and later.

The first time nothing is kept on disk; later what the first one left is there. Each is a process of
its own, which imports, loads a model and steps twice: the second step is the first of those that go
on for ever. What counts is the time on the wall from when it was started.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from bench.harness import Row, Settings, Table

# The first time takes long, and is the same each time.
FIRST_RUNS, LATER_RUNS = 2, 5
KEEPING = ("compiled, int16", "ONNX step, float32")
ROOT = Path(__file__).parents[2]


def tables(settings: Settings) -> Iterator[Table]:
    """Mimi's encoder and nano, in torch and in each way that keeps something on disk."""
    from bench import weights
    from bench.cpu.ways import PLAIN, Way, ways

    models = {"nano": ("nano", "both")}
    if not settings.quick:
        mimi = str(weights.mimi(settings.folder))
        models = {"Mimi, full size, encoder": (mimi, "encoder"), **models}
    found, absent = ways(settings)
    # Of the ways, those that differ in what is kept on disk.
    some = [Way("", PLAIN), *(way for way in found if way.how in KEEPING)]
    absent = [row for row in absent if row.name.endswith(KEEPING)]
    for title, (name, part) in models.items():
        rows = [row for way in some for row in _rows(way, name, part, settings)]
        yield Table(
            f"{title}: from the start of a process to its first live frame",
            "ms",
            [*rows, *absent],
            threads=settings.threads,
        )


def _rows(way: Any, name: str, part: str, settings: Settings) -> list[Row]:
    """First runs, each with empty caches, and later ones on those of the last."""
    firsts: list[dict[str, float]] = []
    laters: list[dict[str, float]] = []
    for _ in range(1 if settings.quick else FIRST_RUNS):
        with TemporaryDirectory(prefix="streamenc-bench-cache-") as cache:
            first = _run(way, name, part, Path(cache))
            if isinstance(first, str):
                return [Row(way.name, note=first)]
            firsts.append(first)
            laters = []
            for _ in range(1 if settings.quick else LATER_RUNS):
                later = _run(way, name, part, Path(cache))
                assert not isinstance(later, str)
                laters.append(later)
    return [
        Row.of(
            f"{way.name}: {when}",
            [1e3 * times["all"] for times in runs],
            note=f"{median(times['load'] for times in runs):.1f} s of it the load",
        )
        for when, runs in (("first time", firsts), ("later", laters))
    ]


def _run(way: Any, name: str, part: str, cache: Path) -> dict[str, float] | str:
    """Seconds of a process, by what it did; or why it cannot."""
    environment = {
        **os.environ,
        "STREAMENC_CACHE": str(cache / "streamenc"),
        "NUMBA_CACHE_DIR": str(cache / "numba"),
    }
    command = [sys.executable, "-m", "bench.cpu.loading", name, part, json.dumps(way)]
    start = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"the process that loads failed:\n{done.stderr}")
    said = json.loads(done.stdout.splitlines()[-1])
    return said if isinstance(said, str) else {**said, "all": seconds}


def load_and_step(name: str, part: str, how: str, options: dict[str, str]) -> Any:
    """What a process does: seconds by name, or why it cannot."""
    start = time.perf_counter()
    import torch

    from bench.cpu.ways import Way, loaded

    imported = time.perf_counter()
    codec = loaded(name, Way(how, options), part=part)
    if isinstance(codec, str):
        return codec
    ready = time.perf_counter()
    stream = codec.stream()
    hop, lead = codec.spec.hop, codec.spec.lead
    for length in (lead, hop):
        stream.push(torch.zeros(1, 1, length))
    stepped = time.perf_counter()
    return {"import": imported - start, "load": ready - imported, "step": stepped - ready}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A process of `python -m bench loading`.")
    parser.add_argument("name")
    parser.add_argument("part")
    parser.add_argument("way", type=json.loads)
    arguments = parser.parse_args()
    print(json.dumps(load_and_step(arguments.name, arguments.part, *arguments.way)))
