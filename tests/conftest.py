"""What all tests share: which of them run, in which order, and the state of the process."""

from __future__ import annotations

import json
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.fullonly import is_full_only
from tests.support.interpreter import interpreted
from tests.support.profile import FULL

__all__ = ["interpreted"]  # one process for all files

# Seconds that each file took, as `pytest --write-durations` found them: `make durations`.
DURATIONS = Path(__file__).parent / "durations.json"

if (
    threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):
    # A shell starts what runs in the background like this; tests of Ctrl-C and their children
    # would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from a second thread, and wait for it on a busy machine."""
    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-durations",
        action="store_true",
        help=f"write the seconds that each file takes to {DURATIONS.name}",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations())


@pytest.hookimpl(tryfirst=True)  # before `-m` looks for markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not FULL:
        left_out, kept = [], []
        for item in items:
            slow = item.get_closest_marker("slow") or is_full_only(item.nodeid)
            (left_out if slow else kept).append(item)
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
    for item in items:
        if "subprocess" in vars(getattr(item, "module", item)):
            item.add_marker("process")
    if hasattr(config, "workerinput"):
        # The longest files first, so that none is left for one worker at the end.
        seconds = json.loads(DURATIONS.read_text())
        items.sort(key=lambda item: -seconds.get(file_of(item.nodeid), 0.0))


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


class Durations:
    """Adds up what tests of a file take, with their fixtures."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[file_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self) -> None:
        known = json.loads(DURATIONS.read_text()) | dict(self.seconds)
        files = {name: round(taken, 1) for name, taken in sorted(known.items()) if taken >= 0.5}
        there = {name: taken for name, taken in files.items() if Path(name).exists()}
        DURATIONS.write_text(json.dumps(there, indent=0) + "\n")
