"""Brokers that are stopped, killed and started again: at quality of service 1 nothing is lost."""

from __future__ import annotations

import pytest

from tests.campaign.brokers import Way, run
from tests.support.broker import MOSQUITTO

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(MOSQUITTO is None, reason="needs the program mosquitto"),
]


def test_two_restarts_of_a_broker_that_keeps_nothing() -> None:
    ways = (Way(False, "KILL", 0.3, 50, readers=2), Way(True, "KILL", 0.3, 50))
    for row in run(2, 1, ways):
        assert row["written"] > 100 and row["received"] == row["written"], row
        for fault in ("lost", "counted", "repeated", "out_of_order", "dropped"):
            assert row[fault] == 0, row


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_restarts_of_each_kind() -> None:
    for row in run(10, 1):
        assert row["repeated"] == row["out_of_order"] == 0, row
        assert row["lost"] == row["counted"], row
        if row["qos"]:
            assert row["lost"] == row["dropped"] == 0, row
