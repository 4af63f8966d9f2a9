"""Front doors in other processes: what an engine's process spends on the sessions of its clients.

The engine serves a model that computes nothing, so that what is left is the way: from a client's
`await session.step(chunk)` by ZeroMQ to the engine's worker and back. Two client processes without
torch hold live sessions of 50 hops a second, each with a phase of its own, and check every answer.
A time counts from when a hop was due to when its answer was there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.cpu.nothing import Nothing
from bench.harness import Row, Settings, Table, percentile
from streamenc.codec import Codec
from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer

COUNTS, QUICK_COUNTS = (256, 512, 1024, 2048), (32,)
CLIENTS = 2
TARGET_P99_MS, TARGET_CPU_US = 40.0, 10.0


def tables(settings: Settings) -> Iterator[Table]:
    """One table: a row for each number of sessions."""
    rows = []
    seconds = 0.5 if settings.quick else 0.08 * settings.frames / 2
    for count in QUICK_COUNTS if settings.quick else COUNTS:
        rows.append(_live(count, seconds))
    yield Table(
        "Live sessions in two client processes, 50 hops a second, of a model that computes nothing",
        "ms from due to answer",
        rows,
        threads=1,
    )


def serve(address: str, places: int) -> None:
    """The engine's process: until its standard input ends."""
    torch.set_num_threads(1)
    with (
        Engine(max_sessions=places, max_wait_ms=2) as engine,
        EngineServer(engine, {"nothing": Codec("nothing", Nothing(), None)}, address) as server,
    ):
        print("ready", flush=True)
        sys.stdin.read()
        print(json.dumps({"server": str(server.statistics()), "engine": str(engine.statistics())}))


def _live(count: int, seconds: float) -> Row:
    with tempfile.TemporaryDirectory(prefix="streamenc-") as folder:
        address = f"ipc://{folder}/engine"
        program = f"from bench.cpu.remote import serve; serve({address!r}, {count})"
        engine = _start([sys.executable, "-c", program])
        each = count // CLIENTS
        door = [sys.executable, "-m", "bench.cpu.frontdoor", address, str(each), str(seconds)]
        doors = [_start(door) for _ in range(CLIENTS)]
        for process in doors:
            _await_ready(process)
        before, began = _cpu_seconds(engine.pid), time.perf_counter()
        for process in doors:
            process.stdin.write("go\n")
            process.stdin.close()
        found = [json.loads(process.stdout.read()) for process in doors]
        cpu_seconds = _cpu_seconds(engine.pid) - before
        load = cpu_seconds / (time.perf_counter() - began)
        for process in doors:
            process.wait()
        engine.stdin.close()
        print(engine.stdout.read(), file=sys.stderr)
        engine.wait()
    times_ms = [ms for each_found in found for ms in each_found["times_ms"]]
    hops = sum(len(each_found["times_ms"]) for each_found in found) + count * 25
    cpu_us = 1e6 * cpu_seconds / hops
    wrong = sum(each_found[key] for each_found in found for key in ("wrong", "missing", "lost"))
    of_clients = ", ".join(f"{each_found['cpu_us']:.0f}" for each_found in found)
    met = percentile(times_ms, 99) < TARGET_P99_MS and cpu_us <= TARGET_CPU_US and not wrong
    note = (
        f"{cpu_us:.1f} us of the engine's CPU a hop ({load:.0%} of a core), {of_clients} of the "
        f"clients'; {wrong} wrong or lost; p99 < {TARGET_P99_MS:g} ms and at most "
        f"{TARGET_CPU_US:g} us: {'met' if met else 'MISSED'}"
    )
    return Row.of(f"{count} sessions", times_ms, note=note)


def _start(command: list[str]) -> Any:
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    if "frontdoor" not in " ".join(command):
        _await_ready(process)
    return process


def _await_ready(process: Any) -> None:
    line = process.stdout.readline()
    if line != "ready\n":
        raise RuntimeError(f"a process of the benchmark ended early: {line!r}")


def _cpu_seconds(process: int) -> float:
    """User and system time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
