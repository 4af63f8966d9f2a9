"""Video's part of the GPU script, small and on the CPU: that its checks can fail, what it tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import weights
from bench.gpu.phases import cosmos
from bench.gpu.timing import Peaks
from streamenc.engine.cudagraph import GraphedStep, Replay
from streamenc.engine.pages import by_index

CPU = torch.device("cpu")
HALF, CODES, LATENTS = cosmos.DRY_CASES


@pytest.mark.parametrize("case", cosmos.DRY_CASES, ids=lambda case: case.title)
def test_steps_and_graphs_pass_their_checks(case: cosmos.Case, tmp_path: Path) -> None:
    assert cosmos.check(case, tmp_path, CPU).ok
    assert cosmos.check_graph(case, tmp_path, CPU).ok


@pytest.mark.parametrize("case", [HALF, CODES], ids=["half", "codes"])
def test_other_weights_are_seen(
    case: cosmos.Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = iter(range(2))
    made = weights.cosmos

    def another(folder: Path, kind: str, **options) -> Path:
        seed = next(seeds)
        return made(folder / str(seed), kind, seed=seed, **options)

    monkeypatch.setattr(weights, "cosmos", another)
    found = cosmos.check(case, tmp_path, CPU)
    assert not found.ok and found.error > 0.1


def test_wrong_codes_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cosmos._latents
    calls = iter(range(2))

    def shifted(*arguments):
        latents, codes = made(*arguments)
        return latents, codes + next(calls)

    monkeypatch.setattr(cosmos, "_latents", shifted)
    assert "0.0000 of the codes" in cosmos.check(CODES, tmp_path, CPU).wrong


def test_a_stale_graph_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stale(cosmos.GraphedStep):
        kept = None

        def __call__(self, x, pages, places):
            self.kept = super().__call__(x, pages, places) if self.kept is None else self.kept
            return self.kept

    monkeypatch.setattr(cosmos, "GraphedStep", Stale)
    assert not cosmos.check_graph(LATENTS, tmp_path, CPU).ok


@pytest.mark.slow
def test_a_step_can_be_captured_and_replayed(tmp_path: Path) -> None:
    """By a recorder that calls anew: no step waits for the host in between."""
    model = CODES.load(tmp_path, CPU)
    ours, theirs = (cosmos.VideoLanes(CODES, model, 2) for _ in range(2))

    def capture(call):
        output = call()
        return Replay(lambda: output.copy_(call()), output)

    graphs = GraphedStep(model, capture)
    with torch.inference_mode():
        for x in ours.inputs:
            y = graphs(x, ours.pages, ours.everyone)
            assert torch.equal(y, by_index(model, x, theirs.pages, ours.everyone))
            assert torch.equal(graphs.after(y), model.after(y))
    assert not graphs.reasons and graphs.held == 2


def test_each_lane_sees_another_image() -> None:
    frames = CODES.frames(3, 5)
    assert frames.shape == (3, 3, 5, 16, 24) and frames.dtype == torch.uint8
    assert not torch.equal(frames[0], frames[1])


@pytest.mark.slow
def test_times_products_and_operators_are_told(phase, lines) -> None:
    cosmos._time(phase, CODES, CPU, Peaks(1e12, 1e9))
    *times, products, first = lines()[:6]
    assert [line.count > 0 for line in times] == [True] * 4
    assert products.note.startswith(f"{products.value / 1e6:.2f} ms ") and products.value > 1e5
    assert first.name == "1." and first.note.split("%")[0].isdigit()


def test_the_target_is_of_one_case() -> None:
    assert [case.has_target for case in cosmos.CASES] == [True] + [False] * 7
    assert not replace(cosmos.CASES[0], dtype=torch.float32).has_target
