"""The GPU script where there is none: what it says, and that its check can fail."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from bench import gpu, weights


def test_without_cuda_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_check_compares_two_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "CHECKED_FRAMES", 3)
    for encodes in (True, False):
        same = gpu.Case("EnCodec", weights.encodec, encodes, 6)
        assert gpu.check(same, tmp_path, "cpu") == 1


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "CHECKED_FRAMES", 3)
    seeds = itertools.count()

    def others(folder: Path) -> Path:
        seed = next(seeds)
        return weights.encodec(folder / str(seed), seed=seed)

    assert gpu.check(gpu.Case("EnCodec", others, True, 6), tmp_path, "cpu") < 0.5


def test_every_lane_gets_another_part_of_the_clip() -> None:
    case = gpu.CASES[0]
    chunks = case.inputs(None, 3, 4)  # type: ignore[arg-type]  # encoders need no codec for it
    assert [tuple(chunk.shape) for chunk in chunks] == [(3, 1, 1920)] * 4
    assert torch.equal(chunks[1][0], chunks[0][1])
    assert not torch.equal(chunks[0][0], chunks[0][1])
