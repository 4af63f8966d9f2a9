"""The checks of graphs' lives, with a stand-in for a graph: they pass, and can fail."""

from __future__ import annotations

import pytest
import torch

from bench.gpu.phases import graphs
from bench.gpu.phases.models import NANO

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return NANO.load(tmp_path_factory.mktemp("nano"), CPU)


def test_all_is_right_with_a_stand_in(phase, all_right, monkeypatch) -> None:
    monkeypatch.setattr(graphs, "MAX_UNUSED", 3)
    monkeypatch.setattr("streamenc.engine.cudagraph.MAX_UNUSED", 3)
    graphs.run(phase)
    notes = {line.name: line.note for line in all_right() if line.ok is not None}
    assert len(notes) == 4
    assert "a host that waits" in notes["graphs: a capture that waits for the host"]
    assert "that is full" in notes["graphs: a capture that finds no memory"]


def test_a_graph_that_is_not_forgotten_is_seen(model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs.GraphedStep, "forget", lambda self: None)
    assert "are held" in graphs.forgotten(NANO, model).wrong


def test_a_capture_that_does_not_fail_is_seen(model) -> None:
    assert "did not fail" in graphs.failed(NANO, model, lambda y: None, model).wrong
    assert "step" not in vars(model)


def test_another_current_stream_is_seen(model, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = iter(["usual", "side"])
    monkeypatch.setattr(graphs, "_current", lambda model: next(streams))
    assert "another stream" in graphs.failed(NANO, model, graphs._waits, model).wrong


def test_a_wrong_replay_is_seen(model, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(call):
        replay, output = graphs.Replay(lambda: None, call())
        return graphs.Replay(replay, output)

    monkeypatch.setattr(graphs, "_anew", spoiled)
    assert not graphs.forgotten(NANO, model).ok
