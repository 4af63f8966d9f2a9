"""Models' checks: they pass on one device, and see what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import weights
from bench.gpu.phases import models
from bench.gpu.phases.models import ENCODEC, NANO, SMALL
from streamenc import state as states

CPU = torch.device("cpu")


def test_all_is_right_on_one_device(phase, all_right) -> None:
    models.check(phase)
    said = " ".join(line.name for line in all_right())
    for part in ("asked for TF32", "bare steps in TF32", "past the rings' ends", "among 2 lanes"):
        assert part in said


def test_the_comparison_with_the_cpu_can_fail(phase, lines) -> None:
    def seeded(seed: int) -> models.Model:
        def path(folder: Path) -> str:
            return f"encodec:{weights.encodec(folder / str(seed), seed=seed)}"

        return replace(ENCODEC, weights=path).load(phase.folder, CPU)

    models._check_latents(phase, ENCODEC, seeded(0), seeded(1))
    wrong = [line for line in lines() if line.ok is False]
    assert len(wrong) == 2 and all(line.error > 0.1 for line in wrong)


@pytest.mark.parametrize("size", [1e-4, float("nan")])
def test_latents_are_compared_as_closely_as_tf32_is_off(size: float, tmp_path: Path) -> None:
    wanted = torch.randn(2, 64, 9)
    assert models.compared(wanted + 1e-7, wanted).ok
    assert not models.compared(wanted + size, wanted).ok


def test_latents_are_those_of_the_stream_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    model = NANO.load(tmp_path, CPU)
    x = NANO.signal(model, 2, model.spec.lead + 8 * model.spec.hop)
    found = models.latents(NANO, model, x)
    with torch.inference_mode():
        y, state = model.step(x[..., : model.spec.lead], None)
        rest, _ = model.step(x[..., model.spec.lead :], state)
    assert models.compared(found, torch.cat([y, rest], dim=2)).ok
    assert "after" not in vars(model)


def test_a_graph_that_gives_something_else_is_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Stale(models.GraphedStep):
        kept = None

        def __call__(self, x, pages, places):
            self.kept = super().__call__(x, pages, places) if self.kept is None else self.kept
            return self.kept

    model = NANO.load(tmp_path, CPU)
    assert models.graph_is_eager(NANO, model).ok
    monkeypatch.setattr(models, "GraphedStep", Stale)
    found = models.graph_is_eager(NANO, model)
    assert not found.ok and found.error > 1e-2


def test_half_precision_steps(tmp_path: Path) -> None:
    half = replace(NANO, dtype=torch.bfloat16)
    assert models.graph_is_eager(half, half.load(tmp_path, CPU), 5e-2).ok


def test_rings_are_full_and_every_lane_has_a_place_of_its_own(tmp_path: Path) -> None:
    model = SMALL.load(tmp_path, CPU)
    lanes = models.Lanes(SMALL, model, 3)
    assert [tuple(x.shape) for x in lanes.inputs] == [(3, 1, 1920)] * models.INPUT_SETS
    assert not torch.equal(lanes.inputs[0][0], lanes.inputs[0][1])
    leaves = list(states.leaves(lanes.state()))
    positions = [leaf for leaf in leaves if leaf.dtype == torch.int64]
    rings = [leaf for leaf in leaves if leaf.ndim == 4]
    assert positions and rings
    for leaf in positions:
        assert leaf.min() >= models.FIRST_POSITION > max(ring.shape[2] for ring in rings)
        assert len(set(leaf.tolist())) == 3
    for ring in rings:
        assert (ring != 0).all()
