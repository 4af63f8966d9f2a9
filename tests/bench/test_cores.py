"""What keeps cores busy, what others use of them, and when a process is still."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from bench import cores
from bench.cores import Busy, OthersCpu, settle

linux = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="no /proc")


def states(busy: Busy) -> list[str]:
    """Of each process, as the system calls it: "T" is stopped."""
    pids = [process.pid for process in busy._processes]
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]


@linux
def test_busy_processes_work_when_told_and_are_gone_behind_it() -> None:
    with Busy(2) as busy:
        pids = [process.pid for process in busy._processes]
        assert states(busy) == ["T", "T"]
        busy.keep(1)
        assert [state == "T" for state in states(busy)] == [False, True]
        before, deadline = busy.cpu_seconds(), time.monotonic() + 20
        while busy.cpu_seconds() < before + 0.05:
            assert time.monotonic() < deadline, "it does not work"
            time.sleep(0.01)
        busy.keep(0)
        assert states(busy) == ["T", "T"]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert busy.cpu_seconds() == 0


def test_none_is_no_process() -> None:
    with Busy(0) as busy:
        busy.keep(0)
        assert busy.cpu_seconds() == 0


def test_what_others_use_of_the_cpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    moments = iter([(100.0, 10.0, 50.0), (116.0, 14.0, 60.0), (116.0, 14.0, 60.0)])
    monkeypatch.setattr(OthersCpu, "_now", lambda self: next(moments))
    # 16 s of CPU were used in 10 s on two cores, 4 of them by us.
    assert str(OthersCpu()) == "60%"
    monkeypatch.setattr(OthersCpu, "_now", lambda self: None)
    assert str(OthersCpu()) == "unknown"


def test_what_others_use_counts_only_while_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    used = iter([0.0, 1.0, 51.0, 52.0])
    walls = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr(OthersCpu, "_now", lambda self: (next(used), 0.0, next(walls)))
    others = OthersCpu()
    others.stop()
    others.go()
    others.stop()
    # 1 s in each of the two times of 10 s, and 50 between them.
    assert str(others) == "10%"


@linux
def test_busy_processes_are_no_others() -> None:
    with Busy(1) as busy:
        busy.keep(1)
        within, without = OthersCpu(busy), OthersCpu()
        time.sleep(0.3)
        own, all_others = (int(str(others).rstrip("%")) for others in (within, without))
    assert own < all_others


def test_what_others_use_is_a_share() -> None:
    others = OthersCpu()
    sum(range(2_000_000))
    assert str(others) == "unknown" or 0 <= int(str(others).rstrip("%")) <= 100


def test_a_process_is_still_once_its_threads_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    spins = threading.Event()

    def spin() -> None:
        while not spins.is_set():
            pass

    thread = threading.Thread(target=spin)
    thread.start()
    monkeypatch.setattr(cores, "MOST_PAUSES", 3)
    try:
        assert not settle(0.05)
    finally:
        spins.set()
        thread.join()
    monkeypatch.setattr(cores, "MOST_PAUSES", 100)
    assert settle(0.02)
    assert settle(0)
