"""A front door, as `bench remote` starts it: live sessions on an engine in another process.

    python -m bench.cpu.frontdoor ADDRESS SESSIONS SECONDS

It says "ready" once its sessions are open, begins at a line on standard input, and prints what it
found as JSON. It knows nothing of torch.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import numpy as np

from streamenc.engine.remote.remoteengine import RemoteEngine
from streamenc.engine.remote.remotesession import RemoteSession

HOP, HOP_SECONDS = 320, 0.02
# Hops of each session before those that count.
WARMUP_HOPS = 25


async def caller(
    session: RemoteSession, number: int, begin: float, hops: int, times_ms: list[float]
) -> int:
    """Sends a hop each 20 ms, like a microphone; how many answers were not what they must be."""
    chunk = np.zeros((1, 1, HOP), np.float32)
    chunk[0, 0, 0] = number / 4096
    clock = time.perf_counter
    wrong = 0
    for hop in range(hops):
        due = begin + hop * HOP_SECONDS
        await asyncio.sleep(due - clock())
        chunk[0, 0, 1] = hop / 65536
        answer = await session.step(chunk)
        if hop >= WARMUP_HOPS:
            times_ms.append(1e3 * (clock() - due))
        wrong += answer.shape != (1, 3, 1) or answer[0, :, 0].tolist() != [
            number / 4096,
            hop / 65536,
            hop + 1,
        ]
    return wrong


async def live(address: str, count: int, seconds: float) -> dict[str, Any]:
    hops = WARMUP_HOPS + round(seconds / HOP_SECONDS)
    times_ms: list[float] = []
    async with await RemoteEngine.connect(address) as engine:
        sessions = [engine.open("nothing") for _ in range(count)]
        for session in sessions:
            await session.admitted()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        before = time.process_time()
        # Each has a phase of its own.
        start = time.perf_counter() + 2 * HOP_SECONDS
        calls = [
            caller(session, number, start + number / count * HOP_SECONDS, hops, times_ms)
            for number, session in enumerate(sessions)
        ]
        wrong = sum(await asyncio.gather(*calls))
        cpu_seconds = time.process_time() - before
        for session in sessions:
            session.close()
        statistics = engine.client_statistics()
    assert "torch" not in sys.modules
    return {
        "times_ms": times_ms,
        "wrong": wrong,
        "missing": count * hops - (statistics.answered - count),
        "lost": statistics.lost,
        "cpu_us": 1e6 * cpu_seconds / (count * hops),
    }


if __name__ == "__main__":
    where, sessions, long = sys.argv[1:]
    print(json.dumps(asyncio.run(live(where, int(sessions), float(long)))))
