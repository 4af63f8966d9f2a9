"""A language model on tokens: a few steps of it, and what it makes."""

from __future__ import annotations

from pathlib import Path

import pytest

import streamenc
from tests.support.program import script

RECIPE = Path(__file__).parents[2] / "examples" / "train_lm" / "train.py"


def test_a_few_steps(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    small = ("--steps", 3, "--batch", 2, "--context", 16, "--seconds", 0.4)
    done = script(RECIPE, "--out", tmp_path, *small)
    assert done.code == 0, done.error
    assert "unigram entropy: " in done.out and "3 steps: " in done.out
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    sound = streamenc.read(tmp_path / "continued.wav").data
    assert sound.shape == (1, 2 * 20 * 320)  # twice 20 frames
    assert (tmp_path / "tokens" / "manifest.jsonl").exists()


def test_wrong_calls_are_told(tmp_path: Path) -> None:
    for arguments, told in (
        (("--context", 15), "multiple of --codebooks"),
        (("--minutes", 0), "above 0"),
    ):
        done = script(RECIPE, "--out", tmp_path, *arguments)
        assert done.code != 0 and told in done.error
