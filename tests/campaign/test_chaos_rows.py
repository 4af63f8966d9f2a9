"""`python -m tests.campaign chaos`: its short form, and that a fault is seen."""

from __future__ import annotations

import subprocess

import pytest

from tests.campaign import chaos, failures
from tests.support import pipes

assert subprocess  # the mark `process`


def test_nodes_that_raise_and_hang() -> None:
    for row in chaos.nodes(0, 0):
        assert row.tried >= 7 and not row.faults


def test_a_graph_that_does_not_close_its_nodes_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def closes_nothing(self: object) -> None:
        return None

    monkeypatch.setattr(pipes.Collect, "aclose", closes_nothing)
    monkeypatch.setattr(failures, "CALLS", {"thread": ("push",)})
    tried, faults = failures.raising()
    assert tried == len(faults) == len(failures.ERRORS)


def test_losses_of_a_broker_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "broker": "persistent",
        "signal": "TERM",
        "away_s": 0.5,
        "hertz": 50,
        "qos": 1,
        "restarts": 2,
        "written": 100,
        "received": 97,
        "lost": 3,
        "counted": 2,
        "repeated": 1,
        "out_of_order": 0,
    }
    monkeypatch.setattr(chaos, "_others", lambda *_: [row])
    [judged] = chaos.brokers(1, 0)
    assert judged.faults == ["1 repeated", "3 lost at QoS 1", "3 lost, 2 counted"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_disks_and_servers() -> None:
    rows = [*chaos.workers(0, 1), *chaos.disks(0, 1), *chaos.servers(0, 1)]
    assert not [row for row in rows if row.faults]
