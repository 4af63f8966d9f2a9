"""Live sessions on an engine: each hop of each is counted."""

from __future__ import annotations

from bench.gpu.phases import live


def test_every_hop_is_answered(phase, lines) -> None:
    live.run(phase)
    counts = [line.count for line in lines() if "from due" in line.name]
    assert counts == [live.DRY_HOPS[1] * count for count in live.DRY_SESSIONS]
    assert all(not line.note for line in lines() if line.count)
