"""A server that is restarted again and again, and clients that come, break off, vanish, resume.

`python -m tests.campaign.visitors FOLDER SECONDS EVERY_SECONDS` prints what became of all of them,
as JSON; exit code 1 where a client got codes that are not those of its sound alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.serve.test_chaos import Chaos
from tests.support.raycluster import free_port
from tests.support.served import Command, alive, children_of, command, until

AT_ONCE = 3
START_SECONDS = 300.0
KEPT_SECONDS = 60  # for who comes back to another server


async def _clients(chaos: Chaos, gate: asyncio.Event, faults: list[str]) -> None:
    """One client after the other, as long as they are let in."""
    while gate.is_set():
        chaos.counts["clients"] += 1
        try:
            await asyncio.wait_for(chaos.client(chaos.counts["clients"]), 120)
        except (AssertionError, TimeoutError, OSError, EOFError) as error:
            faults.append(f"{type(error).__name__}: {error}"[:300])


async def _until(ends_at: float, server: Command, chaos: Chaos, every: float) -> None:
    """Kills a process of the server's now and then, which starts another one."""
    while (left := ends_at - time.monotonic()) > 0:
        await asyncio.sleep(min(left, every / 3))
        workers = sorted(server.children("io"))
        if left > every / 3 and workers:
            os.kill(workers[0], signal.SIGKILL)
            chaos.counts["I/O processes killed"] += 1


def _ready(server: Command) -> None:
    # The first one may have steps to compile.
    server.until(lambda: "ready after" in server.said(), START_SECONDS)


def _gone(pids: set[int]) -> None:
    until(lambda: not any(map(alive, pids)), 30)


async def visited(folder: Path, seconds: float, every: float) -> dict[str, Any]:
    """Runs servers at one port and with one store, one after the other, for that long."""
    port = free_port()
    options = ["-m", "nano", "--sessions", "64", "--bind", f"127.0.0.1:{port}"]
    options += ["--resume-seconds", str(KEPT_SECONDS), "--checkpoint-seconds", "1"]
    options += ["--workers", "2"]
    chaos, gate, faults = Chaos(f"ws://127.0.0.1:{port}", 1), asyncio.Event(), list[str]()
    gate.set()
    ends_at = time.monotonic() + seconds
    clients: list[asyncio.Task[None]] = []
    tracebacks = 0
    while True:
        with command(folder, *options) as server:
            await asyncio.to_thread(_ready, server)
            clients = clients or [
                asyncio.create_task(_clients(chaos, gate, faults)) for _ in range(AT_ONCE)
            ]
            last = time.monotonic() + every >= ends_at
            await _until(min(ends_at, time.monotonic() + every), server, chaos, every)
            if last:
                gate.clear()
                await asyncio.gather(*clients)
            how = signal.SIGTERM if chaos.counts["restarts"] % 2 or last else signal.SIGKILL
            children = children_of(server.process.pid)
            server.process.send_signal(how)
            code = await asyncio.to_thread(server.process.wait, 60)
            chaos.counts[f"server ended by {how.name}"] += 1
            if how is signal.SIGTERM and code:
                faults.append(f"the server's exit code after SIGTERM was {code}")
            # Those of a server that was killed see that it is gone, and free its port.
            await asyncio.to_thread(_gone, children)
            tracebacks += server.said().count("Traceback")
        if last:
            break
        chaos.counts["restarts"] += 1
    return {"counts": dict(chaos.counts), "faults": faults[:20], "tracebacks": tracebacks}


if __name__ == "__main__":
    told = asyncio.run(visited(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
    print(json.dumps(told))
    sys.exit(bool(told["faults"] or told["tracebacks"]))
