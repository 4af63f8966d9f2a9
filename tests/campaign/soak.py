"""`soak`: eight live streams and a server for as long as one likes, and what grows meanwhile."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import machine, percentile
from tests.campaign.tally import write_part
from tests.campaign.voices import EndlessVoice, Watcher, voice

ROOT = Path(__file__).parents[2]
STREAMS = 8
SAMPLE_SECONDS = 5.0
WARM_SECONDS = 60.0
# Of RSS after the first minute, or the first third: a slope over hours, and what a short run may
# rise by beside it (arenas, caches of what is first used late).
MB_PER_HOUR, MB_AT_ONCE = 2.0, 16.0
GROWN = 4  # file descriptors, threads and tasks, beside what they were


@dataclass(frozen=True)
class Sample:
    """The process at one moment; latencies of the frames since the sample before."""

    seconds: float
    rss_mb: float
    fds: int
    threads: int
    tasks: int
    frames: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    accounts: bool


def run(given: argparse.Namespace) -> int:
    where = machine() if given.out else {}
    found = asyncio.run(soak(given.minutes * 60, given.restart_minutes * 60))
    print_found(found)
    if given.out:
        write_part(given.out, "soak", found, where)
    return int(bool(found["faults"]))


async def soak(seconds: float, restart_seconds: float) -> dict[str, Any]:
    """Runs it; what was seen, and under `faults` the bounds that were broken, in words."""
    import torch

    import streamenc
    from streamenc.pipeline.builder import Pipeline

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        folder = Path(temporary)
        visitors = None
        if restart_seconds:
            visitors = _visitors(folder, seconds, restart_seconds)
        codec = streamenc.load("nano")
        sound = voice()
        sources = [EndlessVoice(np.roll(sound, 7 * i * 960, axis=1)) for i in range(STREAMS)]
        watchers = [Watcher() for _ in sources]
        subscribers = {}
        with Pipeline() as pipeline:
            for number, (source, watcher) in enumerate(zip(sources, watchers, strict=True)):
                pipeline.live = True
                name = pipeline.graph.source(f"voice{number}", source)
                codes = pipeline.encode(f"encode{number}", codec, name)
                pipeline.sink(f"record{number}", str(folder / f"{number}.arrows"), codes)
                pipeline.sink(f"watch{number}", watcher, codes)
                if number < 2:
                    mode = ("pub", "credit")[number]
                    address = f"zmq+ipc://{folder}/{mode}.sock?mode={mode}"
                    pipeline.sink(f"publish{number}", f"{address}&wait_subscribers=1", codes)
                    subscribers[mode] = _subscriber(address, folder / f"{mode}.json")
            running = asyncio.create_task(pipeline.run())
            samples = await _sampled(pipeline.graph, watchers, running, seconds)
            pipeline.graph.stop()
            report = await running
        heard = {
            mode: _ended(process, folder / f"{mode}.json") for mode, process in subscribers.items()
        }
        recorded = await asyncio.to_thread(_recorded, folder)
        visits: dict[str, Any] = {}
        if visitors is not None:
            out, _ = await asyncio.to_thread(visitors.communicate, timeout=600)
            visits = json.loads(out) if out else {"faults": ["it said nothing"], "tracebacks": 0}
    written = [watcher.frames for watcher in watchers]
    found: dict[str, Any] = {
        "seconds": round(seconds),
        "streams": STREAMS,
        "frames": sum(written),
        "recorded": sum(recorded),
        "gaps": sum(watcher.gaps for watcher in watchers),
        "dropped": report.dropped,
        "subscribers": {
            mode: {"frames": len(h["latencies_ms"]), "lost": h["lost"], "gaps": h["gaps"]}
            for mode, h in heard.items()
        },
        "published": {"pub": written[0], "credit": written[1]},
        "visits": visits,
        **_slopes(samples),
        "samples": [asdict(sample) for sample in samples],
    }
    found["faults"] = faults(found, written == recorded)
    return found


def _subscriber(address: str, out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.cpu.latency", address, str(out)], cwd=ROOT
    )


def _visitors(folder: Path, seconds: float, every_seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.campaign.visitors", str(folder)]
    command += [str(seconds), str(every_seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)


def _ended(process: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    if process.wait(60):
        return {"latencies_ms": [], "lost": -1, "gaps": -1}
    heard: dict[str, Any] = json.loads(out.read_text())
    return heard


def _recorded(folder: Path) -> list[int]:
    """Frames of each recording, read back."""
    from streamenc.io.files.recording import RecordingSource

    counts = []
    for number in range(STREAMS):
        source = RecordingSource(str(folder / f"{number}.arrows"))
        source.open_blocking()
        count = 0
        while source.read() is not None:
            count += 1
        source.close_blocking()
        counts.append(count)
    return counts


async def _sampled(
    graph: Any, watchers: list[Watcher], running: asyncio.Task[Any], seconds: float
) -> list[Sample]:
    """What there is every few seconds, from the first frame on, for that long."""
    while not all(watcher.frames for watcher in watchers):
        await asyncio.wait({running}, timeout=0.1)
        if running.done():
            running.result()
    for watcher in watchers:
        watcher.ages_ms.clear()
    began = time.monotonic()
    every = min(SAMPLE_SECONDS, seconds / 10)
    samples = []
    while (now := time.monotonic() - began) < seconds:
        await asyncio.wait({running}, timeout=min(every, seconds - now) or 0.01)
        if running.done():
            running.result()
            break
        ages = [age for watcher in watchers for age in watcher.ages_ms]
        for watcher in watchers:
            watcher.ages_ms.clear()
        edges = graph.report().edges
        samples.append(
            Sample(
                round(time.monotonic() - began, 3),
                _rss_mb(),
                len(os.listdir("/proc/self/fd")),
                threading.active_count(),
                len(asyncio.all_tasks()),
                len(ages),
                *(round(percentile(ages or [0.0], share), 2) for share in (50, 99, 100)),
                all(e.sent == e.received + e.dropped + e.in_flight for e in edges),
            )
        )
    return samples


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _slopes(samples: list[Sample]) -> dict[str, Any]:
    """What grew after it was warm: MB and ms an hour, by a line of least squares."""
    warm = min(WARM_SECONDS, samples[-1].seconds / 3)
    settled = [sample for sample in samples if sample.seconds >= warm]
    hours = np.array([sample.seconds / 3600 for sample in settled])

    def slope(values: list[float]) -> float:
        return float(np.polyfit(hours, values, 1)[0]) if len(settled) > 2 else 0.0

    first, last = settled[0], settled[-1]
    return {
        "hours": float(hours[-1] - hours[0]),
        "rss_mb": [round(first.rss_mb, 1), round(last.rss_mb, 1)],
        "rss_mb_per_hour": round(slope([s.rss_mb for s in settled]), 2),
        "p50_ms": [first.p50_ms, last.p50_ms],
        "p50_ms_per_hour": round(slope([s.p50_ms for s in settled]), 2),
        "p99_ms": percentile([s.p99_ms for s in settled], 50),
        "max_ms": max(s.max_ms for s in samples),
        "fds": [first.fds, last.fds],
        "threads": [first.threads, last.threads],
        "tasks": [first.tasks, last.tasks],
        "accounts": all(sample.accounts for sample in samples),
    }


def faults(found: dict[str, Any], recorded: bool) -> list[str]:
    """The bounds that were broken. Latency is not judged: it follows the machine's load."""
    broken = []
    allowed = MB_PER_HOUR * found["hours"] + MB_AT_ONCE
    rise = found["rss_mb"][1] - found["rss_mb"][0]
    if rise > allowed:
        broken.append(f"RSS rose by {rise:.1f} MB, {allowed:.1f} allowed")
    for name in ("fds", "threads", "tasks"):
        before, after = found[name]
        if after > before + GROWN:
            broken.append(f"{name} grew from {before} to {after}")
    if not found["accounts"]:
        broken.append("in = out + dropped + in flight did not hold on an edge")
    if not recorded:
        broken.append(f"{found['recorded']} frames are recorded of {found['frames']}")
    for name in ("gaps", "dropped"):
        if found[name]:
            broken.append(f"{name}: {found[name]}")
    for mode, heard in found["subscribers"].items():
        written = found["published"][mode]
        if heard["frames"] != written or heard["lost"] or heard["gaps"]:
            broken.append(f"the subscriber of {mode} has {heard} of {written}")
    visits = found["visits"]
    if visits and (visits["faults"] or visits["tracebacks"]):
        broken.append(
            f"the server's clients: {visits['faults'][:3]}, {visits['tracebacks']} tracebacks"
        )
    return broken


def print_found(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    for name, value in found.items():
        if name not in ("samples", "faults"):
            console.print(escape(f"{name.replace('_', ' '):>18}  {value}"))
    for fault in found["faults"]:
        console.print(escape(f"FAULT: {fault}"), style="red")
