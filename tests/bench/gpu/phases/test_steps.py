"""Steps in time: what their rows hold, and how capacity is found."""

from __future__ import annotations

import sys

import pytest

from bench.gpu.phases import steps
from bench.harness import Row


def test_steps_are_timed_and_profiled(phase, lines) -> None:
    steps.mimi(phase)
    by_table: dict[str, list] = {}
    for line in lines():
        by_table.setdefault(line.table, []).append(line)
    times = by_table["a small Mimi encode, float32, 8 codebooks, full rings"]
    assert [line.name for line in times] == [
        "1 lane, a graph",
        "3 lanes, a graph",
        "1 lane, no graph",
    ]
    assert all(line.count >= 5 and line.p50_ms is None for line in times)
    profiles = [some for table, some in by_table.items() if "kernels of a step" in table]
    assert len(profiles) == 2
    for some in profiles:
        assert some[0].name == "all" and 10 < len(some) <= 1 + steps.KERNELS


def test_other_sides_are_timed(phase, lines) -> None:
    steps.others(phase)
    assert [line.count > 0 for line in lines() if line.unit == steps.UNIT] == [True] * 2


@pytest.mark.parametrize("start", [512, 2048, 16_384])
def test_the_most_lanes_are_found(start: int) -> None:
    """Of a device where a lane takes 0.01 ms, and 10,000 are out of memory."""

    def timed(count: int) -> Row | None:
        return None if count >= 10_000 else Row.of("", [0.01 * count])

    assert 3600 <= steps.most_lanes(timed, start, steps.MOST_LANES) < 4000


def test_no_lane_keeps_up() -> None:
    assert steps.most_lanes(lambda count: None, 4, 16) == 0


def test_moshi_is_looked_for_beside_the_rows(phase, lines, monkeypatch) -> None:
    """A wheel is pure Python, which is imported as it lies there."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "moshi.models", None)
    monkeypatch.setattr(steps.weights, "mimi", lambda folder: folder)
    wheel = phase.rows.parent / "moshi-0.0-py3-none-any.whl"
    wheel.touch()
    steps.moshi(phase)
    [line] = [line for line in lines() if line.name == "moshi"]
    assert "not found" in line.note and str(phase.rows.parent) in line.note
    assert sys.path[0] == str(wheel)
