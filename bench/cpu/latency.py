"""Latency: file in real time -> resample -> chunker -> encoder -> ZeroMQ -> another process.

It counts from the moment at which the newest sample of a frame was due, as from a microphone, to
the moment at which a subscriber in another process holds the frame. What an encoder must wait for
by its nature, a hop of sound, is not in it; the tables name it beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio

from bench.harness import Row, Settings, Table

DEADLINE_MS = 200
LONGEST_SECONDS = 12.0


def tables(settings: Settings) -> Iterator[Table]:
    """One for the spectrogram, one for Mimi with random weights."""
    import torch

    import streamenc
    from bench import weights

    mimi = str(weights.mimi(settings.folder))
    # A hop of 10 ms is too short to be worth the threads' waiting for each other.
    torch.set_num_threads(1)
    yield publish(streamenc.load("mel"), None, settings, 1)
    torch.set_num_threads(settings.threads)
    codec = streamenc.load(mimi, part="encoder")
    yield publish(codec, 8, settings, settings.threads)


def publish(codec: Any, codebooks: int | None, settings: Settings, threads: int) -> Table:
    """Plays the clip through the graph and a subscriber of its own."""
    from bench import signals
    from streamenc.pipeline.builder import Pipeline

    seconds = 1.5 if settings.quick else LONGEST_SECONDS
    clip = signals.write_wav(settings.folder / "clip.wav", seconds)
    heard = settings.folder / "heard.json"
    endpoint = f"zmq+ipc://{settings.folder}/bench.sock"
    with Pipeline(deadline_ms=DEADLINE_MS) as pipeline:
        source = pipeline.source("file", str(clip), realtime=True)
        encoded = pipeline.encode("encode", codec, source, codebooks=codebooks)
        pipeline.sink("publish", f"{endpoint}?wait_subscribers=1", encoded)
        command = [sys.executable, "-m", "bench.cpu.latency", endpoint, str(heard)]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as subscriber:
            report = pipeline.graph.run_blocking(handle_signals=False)
            if subscriber.wait(timeout=60):
                raise RuntimeError(f"the subscriber failed with exit code {subscriber.returncode}")
    there: dict[str, Any] = json.loads(heard.read_text())
    times_ms: list[float] = there["latencies_ms"]
    sink = report["publish"].sink
    assert sink is not None
    rows = []
    for name in ("encode.resample", "encode.chunk", "encode", "publish"):
        node = report[name]
        for what, latency in (("waited", node.queue_wait), ("worked", node.processing)):
            rows.append(_row(f"{name}: {what}", latency))
    rows += [
        _row("all, to the socket", sink.end_to_end),
        Row.of("all, to the other process", times_ms),
    ]
    spec = codec.spec
    facts = {
        "frames": f"{len(times_ms)} of {report['publish'].frames_in}",
        "gaps": there["gaps"],
        "lost": there["lost"],
        "dropped": report.dropped,
        f"later than {DEADLINE_MS} ms": sum(t > DEADLINE_MS for t in times_ms),
        "a hop of the encoder": f"{float(spec.hop / spec.input.rate) * 1e3:g} ms",
        "first frame": f"{sink.first_frame_ms:.0f} ms after the start",
    }
    return Table(
        f"{spec.name}: {seconds:g} s in real time, to a subscriber in another process",
        "ms per frame",
        rows,
        threads=threads,
        facts=facts,
    )


def _row(name: str, latency: Any) -> Row:
    return Row(
        name,
        latency.count,
        p50_ms=latency.p50_ms,
        p99_ms=latency.p99_ms,
        max_ms=latency.max_ms,
    )


async def subscribe(endpoint: str) -> dict[str, Any]:
    """Takes the stream to its end; gives how late each frame came."""
    from streamenc import io

    source = io.source(endpoint)
    latencies_ms, gaps, following = [], 0, 0
    try:
        await source.open()
        async for frame in source.frames():
            latencies_ms.append((source.clock.now_ns() - frame.arrived_ns) / 1e6)
            gaps += frame.discontinuity or frame.seq != following
            following = frame.seq + 1
    finally:
        await source.aclose()
    return {"latencies_ms": latencies_ms, "gaps": gaps, "lost": source.lost}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The subscriber of `python -m bench latency`.")
    parser.add_argument("endpoint")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.write_text(json.dumps(anyio.run(subscribe, arguments.endpoint)))
