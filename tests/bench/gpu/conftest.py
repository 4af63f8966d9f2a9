"""What the phases' tests share: one in small, on the CPU, in this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.gpu import rows
from bench.gpu.phase import Phase


@pytest.fixture
def phase(tmp_path: Path) -> Phase:
    return Phase("test", tmp_path / "rows.jsonl", tmp_path, time.monotonic() + 100, dry=True)


@pytest.fixture
def lines(phase: Phase) -> Callable[[], list[rows.Line]]:
    """What it has written so far."""
    return lambda: rows.read(phase.rows)


@pytest.fixture
def all_right(lines: Callable[[], list[rows.Line]]) -> Callable[[], list[rows.Line]]:
    """Its checks, of which some were made and none failed, and no row tells of an error."""

    def read() -> list[rows.Line]:
        found = lines()
        assert not [line for line in found if "not timed" in line.note or "no time" in line.note]
        checks = [line for line in found if line.ok is not None]
        assert checks and not [line for line in checks if not line.ok]
        assert all(line.p50_ms is None and line.value is None for line in found if line.dry)
        return found

    return read
