"""Mimi's convolutions: which they are, and that each way is compared."""

from __future__ import annotations

import pytest
import torch

from bench.gpu.phases import convolutions
from bench.gpu.phases.convolutions import WAYS, mimi


def test_they_are_those_of_a_step() -> None:
    found = list(mimi(1))
    assert len(found) == 15
    first, *_, last = found
    assert (first.ins, first.outs, first.kernel, first.length) == (1, 64, 7, 1920)
    assert (last.ins, last.outs, last.kernel, last.length) == (512, 512, 4, 2)
    largest = max(found, key=lambda conv: conv.ins * conv.outs * conv.kernel)
    assert largest.title == "512 to 1024, kernel 16, stride 8, 2 outputs"
    # 6.4 M multiplications for each 2 outputs of the largest, and all that it reads.
    assert largest.flops == 2 * 2 * 512 * 1024 * 16
    assert largest.nbytes == 4 * (1024 * (512 * 16 + 1) + 512 * 24 + 2 * 1024)


def test_all_ways_agree(phase, all_right) -> None:
    convolutions.run(phase)
    timed = [line for line in all_right() if line.count]
    assert len(timed) == 15 * len(WAYS)
    sums = [line.name for line in all_right() if line.name.startswith("all: ")]
    assert sums == [f"all: {name}" for name in WAYS]


def test_a_wrong_way_is_seen(phase, lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WAYS, "the layer", lambda conv, given: WAYS["cuDNN"](conv, given) + 1)
    conv = next(mimi(2, small=True))
    convolutions._timed(
        phase, "Table", conv, "the layer", torch.device("cpu"), convolutions.Peaks(None, None)
    )
    [line] = lines()
    assert line.ok is False and line.error > 0.01
