"""Every target: what once broke a promise, and some new cases, always the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.campaign.target import TARGETS, case_of, open_target
from tests.campaign.watched import watch

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_what_broke_a_promise_once(name: str, tmp_path: Path) -> None:
    target = open_target(name, tmp_path)
    for path in sorted((CORPUS / name).glob("*")):
        assert not watch(target, path.read_bytes()).faults(target), path.name


@pytest.mark.parametrize("name", TARGETS)
def test_some_cases(name: str, tmp_path: Path) -> None:
    target = open_target(name, tmp_path)
    endings = set()
    for number in range(40):
        data = case_of(target, name, 0, number)
        outcome = watch(target, data)
        assert not outcome.faults(target), (number, data[:200])
        endings.add(outcome.ending)
    assert "refused" in endings  # else the cases are too tame to show anything
