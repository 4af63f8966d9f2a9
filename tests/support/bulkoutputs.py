"""What a set of tokens holds, for comparing it with another; and ways to end a run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from streamenc.bulk.manifest import read_manifests


def shards(output: Path) -> dict[str, str]:
    """File -> its hash, of all that is in the place of shards."""
    files = sorted((output / "data").iterdir())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def keys(output: Path) -> list[str]:
    """Of all rows, in the order of shards."""
    tables = [pq.read_table(path) for path in sorted((output / "data").iterdir())]
    return [key for table in tables for key in table["key"].to_pylist()]


def errors(output: Path) -> dict[str, dict[str, Any]]:
    """Key -> what is said of it, each once."""
    files = sorted(output.glob("errors*.jsonl"))
    lines = [line for path in files for line in path.read_text().splitlines()]
    found = {line["key"]: line for line in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found


def check_manifest(output: Path) -> None:
    """All that it says is there, and whole."""
    for line in read_manifests(output).values():
        for file in line.files:
            content = (output / file.name).read_bytes()
            assert len(content) == file.bytes
            assert hashlib.sha256(content).hexdigest() == file.sha256


def children(pid: int) -> list[int]:
    """Of a process, by Linux' /proc."""
    found = []
    for entry in os.listdir("/proc"):
        with suppress(OSError, ValueError):
            stat = Path("/proc", entry, "stat").read_text()
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(entry))
    return found


def end(*pids: int) -> None:
    """With kill -9."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether it is there and is no zombie."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
