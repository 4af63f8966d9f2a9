"""What a run and its workers say to each other."""

from __future__ import annotations

import os
import time

import pytest

from streamenc import errors
from streamenc.bulk.workers import partprocess
from streamenc.bulk.workers.messages import Began, Failure, line_of, read_report
from streamenc.bulk.workers.partprocess import PartProcess
from streamenc.bulk.workers.workforce import _error_of


def test_a_report_is_read_as_it_was_said() -> None:
    assert read_report(line_of(Began("a", 1))[:-1]) == Began("a", 1)


@pytest.mark.parametrize("line", [b"", b"Loading...", b"{}", b'{"type":"Began"}', b"[" * 100_000])
def test_another_line_is_told(line: bytes) -> None:
    with pytest.raises(errors.WireError, match="no report of a worker"):
        read_report(line)


def test_a_worker_that_says_something_else_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    said = line_of(Began("a", 5)).decode() + "warning: cannot\n"
    monkeypatch.setattr(partprocess, "COMMAND", ("sh", "-c", f"printf '%s' '{said}'; exec cat"))
    worker = PartProcess(0, "cpu")
    try:
        found = []
        ends = time.monotonic() + 20
        while not worker.why and time.monotonic() < ends:
            os.sched_yield()
            found += worker.hear()
        assert found == [Began("a", 5)] and [*worker.in_hand] == ["a"]
        assert "no report of a worker" in worker.how_it_ended()
    finally:
        worker.close()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("InputError", errors.InputError),
        ("CheckpointError", errors.CheckpointError),
        ("EngineFull", errors.StreamencError),
        ("annotations", errors.StreamencError),
        ("__name__", errors.StreamencError),
    ],
)
def test_a_workers_error_is_raised_as_one_of_ours(name: str, kind: type) -> None:
    assert type(_error_of(Failure(name, "it is so"))) is kind
