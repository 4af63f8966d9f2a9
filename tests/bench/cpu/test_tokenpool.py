"""`bench tokenize` at its smallest: the same tokens from all, each timed, and where time goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cpu import tokenize
from bench.harness import Settings

pytestmark = pytest.mark.process


def test_a_pool_gives_the_same_tokens_and_both_are_timed(tmp_path: Path) -> None:
    [table] = tokenize.tables(Settings(1, 1, tmp_path, quick=True))
    assert [row.name for row in table.rows] == [
        "streamenc tokenize, 1 process",
        "a pool, 1 process",
    ]
    for row in table.rows:
        assert row.p50_ms and row.p50_ms > 0 and row.ratio and row.ratio > 0
        assert row.note.endswith("times real time a core")
    shares = table.facts["where the time goes, 1 process"]
    assert all(what in shares for what in ("reading", "decoding", "encoding", "writing"))
    assert float(table.facts["times as fast as the pool, 1 process"]) > 0
