"""`streamenc serve` under live sessions, up to the knee, and the same sessions on its engine alone.

A real server: its supervisor, its engine's process, and one I/O process. Two other processes hold
the clients, by WebSockets, each session with a phase of its own: a packet of sound each 20 ms (80
for Mimi), s16 at the model's rate, whether or not the one before was answered. A time counts from
when a packet was due to when all codes that it completes are there. Each item that comes is
compared with what the model gives alone.

Beside each row of the server stand the same sessions by `await session.step` of a RemoteEngine in
the same client processes, on the same engine, a moment before: what the server adds is the
difference. The knee is the most sessions of which 99 % of the packets are answered within a packet.
At half of it both are measured some times by turns; the overhead is the median of the differences.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np
import torch

import streamenc
from bench import signals, weights
from bench.cpu.socketdoor import Task
from bench.harness import Row, Settings, Table
from streamenc.models.model import Model

COUNTS, QUICK_COUNTS = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256), (2,)
MIMI_COUNTS = (1, 2, 4, 6, 8)
# Of the engine alone and the server by turns, at half load.
ROUNDS = 3
CLIENTS = 2
MOST = 512
TARGET_P50_MS, TARGET_P99_MS = 2.0, 10.0
START_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under load: how it is called, and the packets that its sessions send."""

    title: str
    name: str
    model: Model
    samples: int
    counts: tuple[int, ...]

    @property
    def period(self) -> float:
        return float(self.samples / self.model.spec.input.rate)


def tables(settings: Settings) -> Iterator[Table]:
    """A table for each model."""
    torch.set_num_threads(1)
    for title, name, counts in (
        ("nano", "nano", COUNTS),
        ("mel", "mel:whisper", COUNTS),
        ("Mimi", str(weights.mimi(settings.folder, small=settings.quick)), MIMI_COUNTS),
    ):
        if settings.only and settings.only not in title.lower():
            continue
        model = streamenc.load(name, part="encoder").encoder
        spec = model.spec
        samples = max(spec.hop, round(0.02 * spec.input.rate / spec.hop) * spec.hop)
        counts = QUICK_COUNTS if settings.quick else counts
        with _served(name, settings.folder) as server:
            yield _raised(Subject(title, name, model, samples, counts), server, settings)


class Server:
    """A server that runs, by its processes and addresses."""

    def __init__(self, process: Any, url: str) -> None:
        self.url = url
        self.processes = {"supervisor": process.pid}
        self.engine = ""
        for child in _children(process.pid):
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            address = [word for word in words if word.startswith("ipc://")]
            if address:
                self.engine, self.processes["engine"] = address[0], child
            elif "streamenc.serve.processes.ioworker" in words:
                self.processes["I/O"] = child

    def model(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/v1/models") as answer:
            found: dict[str, Any] = json.load(answer)["models"][0]
            return found

    def cpu_seconds(self) -> dict[str, float]:
        return {name: _cpu_seconds(process) for name, process in self.processes.items()}


@contextmanager
def _served(name: str, folder: Path) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(dir=folder) as store:
        command = [sys.executable, "-m", "streamenc", "serve", "-m", name]
        command += ["--bind", "127.0.0.1:0", "--sessions", str(MOST), "--store", store]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            _await_ready(url)
            yield Server(process, url)
        finally:
            process.terminate()
            process.wait(30)


def _raised(subject: Subject, server: Server, settings: Settings) -> Table:
    """More and more sessions, then half of those that were too many."""
    seconds = 0.5 if settings.quick else max(3.0, 0.08 * settings.frames / 3)
    rows: list[Row] = []
    knee = hopeless = 0
    for count in subject.counts:
        both = _measured(subject, server, count, seconds, settings.folder)
        rows += both
        if (both[1].p99_ms or 0.0) <= 1e3 * subject.period:
            knee = count
        hopeless += (both[1].p50_ms or 0.0) > 1e3 * subject.period
        if hopeless == 2:
            break
    half = max(1, knee // 2)
    rounds = 1 if settings.quick else ROUNDS
    pairs = [_measured(subject, server, half, seconds, settings.folder) for _ in range(rounds)]
    rows += [row for pair in pairs for row in pair]
    p50, p99 = (
        median(getattr(served, name) - getattr(alone, name) for alone, served in pairs)
        for name in ("p50_ms", "p99_ms")
    )
    met = p50 <= TARGET_P50_MS and p99 <= TARGET_P99_MS
    facts = {
        "a packet": f"{1e3 * subject.period:g} ms",
        "knee": f"{knee} sessions",
        "overhead at half load": f"p50 {p50:.1f} ms, p99 {p99:.1f} ms of {half} sessions, the "
        f"median of {rounds}; wanted at most {TARGET_P50_MS:g} and {TARGET_P99_MS:g}: "
        f"{'met' if met else 'MISSED'}",
    }
    return Table(
        f"Live sessions of {subject.title} on a server, beside its engine alone",
        "ms from due to codes",
        rows,
        threads=1,
        facts=facts,
    )


def _measured(
    subject: Subject, server: Server, count: int, seconds: float, folder: Path
) -> tuple[Row, Row]:
    """The engine alone, and the server."""
    sound, expected = _answers(subject, seconds + 2, folder)
    name = server.model()["name"]
    alone = _loaded(subject, server, server.engine, name, count, seconds, sound, expected)
    url = server.url.replace("http", "ws")
    served = _loaded(subject, server, url, name, count, seconds, sound, expected)
    return alone, served


def _loaded(
    subject: Subject,
    server: Server,
    address: str,
    name: str,
    count: int,
    seconds: float,
    sound: Path,
    expected: Path,
) -> Row:
    spec = subject.model.spec
    doors = min(CLIENTS, count)
    shares = [count // doors + (number < count % doors) for number in range(doors)]
    processes = []
    for number, share in enumerate(shares):
        task = Task(
            address, name, str(sound), str(expected), subject.samples, subject.period, spec.lead,
            spec.hop, spec.lead_out, spec.hop_out, share, sum(shares[:number]), count, seconds,
        )  # fmt: skip
        process: Any = subprocess.Popen(
            [sys.executable, "-m", "bench.cpu.socketdoor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        process.stdin.write(msgspec.json.encode(task).decode() + "\n")
        process.stdin.flush()
        processes.append(process)
    for process in processes:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a process of clients ended early")
    before, began = server.cpu_seconds(), time.perf_counter()
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.close()
    found = [json.loads(process.stdout.read()) for process in processes]
    wall_seconds = time.perf_counter() - began
    after = server.cpu_seconds()
    for process in processes:
        process.wait()
    times_ms = [ms for each in found for ms in each["times_ms"]]
    cpu = {name: (after[name] - before[name]) / wall_seconds for name in after}
    cpu["clients"] = sum(each["cpu"] for each in found)
    wrong, missing, items = (
        sum(each[key] for each in found) for key in ("wrong", "missing", "items")
    )
    loads = ", ".join(f"{name} {share:.0%}" for name, share in cpu.items() if share >= 0.005)
    note = f"CPU: {loads}; {wrong} of {items} items wrong, {missing} packets unanswered"
    what = "engine alone" if address.startswith("ipc:") else "server"
    if not times_ms:
        raise RuntimeError(f"no packet was answered: {note}")
    return Row.of(f"{count} sessions, {what}", times_ms, note=note)


def _answers(subject: Subject, seconds: float, folder: Path) -> tuple[Path, Path]:
    """Some sound, and what the model alone makes of it, hop by hop."""
    spec = subject.model.spec
    rate = int(spec.input.rate)
    stem = f"{subject.title}-{seconds:g}"
    sound_path, expected_path = folder / f"{stem}-sound.npy", folder / f"{stem}-codes.npy"
    if expected_path.exists():
        return sound_path, expected_path
    heard = signals.speech(rate, round(seconds * rate))
    sound = np.clip(np.rint(heard * 32768), -32768, 32767).astype(np.int16)
    stream = streamenc.stream.Stream(subject.model)
    floats = torch.from_numpy(sound.astype(np.float32) / 32768)[None, None]
    parts = [
        stream.push(floats[:, :, at : at + subject.samples])
        for at in range(0, floats.shape[2], subject.samples)
    ]
    made = torch.cat([part for part in parts if part.shape[2]], dim=2)[0].numpy()
    np.save(sound_path, sound)
    np.save(expected_path, made.astype(spec.output.dtype))
    return sound_path, expected_path


def _await_ready(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"the server at {url} was not ready within {START_SECONDS:g} s")


def _children(process: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").iterdir():
        direct = [int(word) for word in (task / "children").read_text().split()]
        found += direct + [inner for child in direct for inner in _children(child)]
    return found


def _cpu_seconds(process: int) -> float:
    """User and system time that a process has taken."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
