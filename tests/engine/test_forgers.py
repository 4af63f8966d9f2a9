"""Thousands of forged snapshots in lanes beside good neighbours, wherever their steps run."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tests.campaign.targets.snapshots import RUNS, Crowd, forged, recipe, served
from tests.campaign.watched import watch

pytest.importorskip("numba", reason="needs the extra cpu")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

CASES = [
    (name, runs)
    for name in ("nano", "mimi", "encodec", "wav2vec2", "cosmos", "whisper-chunked")
    for runs in {*RUNS.get(name, ("torch",)), *(("onnx",) if name in ("nano", "mimi") else ())}
]
EACH = -(-4000 // len(CASES))


class Beside:
    """One crowd, as a target."""

    seconds, peak_bytes = 2.0, 100 << 20

    def __init__(self, name: str, runs: str) -> None:
        self._crowd = Crowd(served(name, runs))

    def case(self, rng: Random) -> bytes:
        raise NotImplementedError

    def take(self, data: bytes) -> None:
        self._crowd.beside(data)

    def forged(self, rng: Random) -> bytes:
        crowd = self._crowd
        return forged(crowd.blob, recipe(rng, crowd.model.spec), crowd.per_step)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "runs"), sorted(CASES))
def test_no_neighbour_ever_notices(name: str, runs: str) -> None:
    target, endings = Beside(name, runs), Counter[str]()
    for number in range(EACH):
        blob = target.forged(Random(f"{name} {runs} {number}"))
        outcome = watch(target, blob)
        assert not outcome.faults(target), number
        endings[outcome.ending] += 1
    assert endings["refused"] > EACH // 4 and endings["taken"] > EACH // 20
