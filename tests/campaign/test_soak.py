"""`python -m tests.campaign soak`: seconds of it, and that each bound can be broken."""

from __future__ import annotations

import asyncio
import subprocess
from typing import Any

import pytest

from tests.campaign.soak import faults, soak

assert subprocess  # the mark `process`

GOOD: dict[str, Any] = {
    "hours": 1.0,
    "rss_mb": [300.0, 301.0],
    "fds": [40, 40],
    "threads": [9, 9],
    "tasks": [70, 70],
    "accounts": True,
    "frames": 1000,
    "recorded": 1000,
    "gaps": 0,
    "dropped": 0,
    "published": {"pub": 100, "credit": 100},
    "subscribers": {
        "pub": {"frames": 100, "lost": 0, "gaps": 0},
        "credit": {"frames": 100, "lost": 0, "gaps": 0},
    },
    "visits": {"faults": [], "tracebacks": 0},
}


def test_some_seconds_of_it() -> None:
    found = asyncio.run(soak(3.0, restart_seconds=0))
    assert not found["faults"]
    assert found["frames"] == found["recorded"] > 8 * 3 * 20
    assert found["subscribers"].keys() == {"pub", "credit"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("rss_mb", [300.0, 330.0], "RSS rose by 30.0 MB"),
        ("fds", [40, 90], "fds grew from 40 to 90"),
        ("threads", [9, 99], "threads grew"),
        ("tasks", [70, 700], "tasks grew"),
        ("accounts", False, "did not hold"),
        ("gaps", 1, "gaps: 1"),
        ("dropped", 2, "dropped: 2"),
        ("published", {"pub": 100, "credit": 101}, "the subscriber of credit"),
        ("visits", {"faults": ["AssertionError"], "tracebacks": 0}, "AssertionError"),
    ],
)
def test_a_bound_that_is_broken_is_a_fault(name: str, value: object, said: str) -> None:
    assert not faults(GOOD, True)
    [fault] = faults(GOOD | {name: value}, True)
    assert said in fault


def test_frames_that_are_not_recorded_are_a_fault() -> None:
    assert faults(GOOD | {"recorded": 999}, False) == ["999 frames are recorded of 1000"]
