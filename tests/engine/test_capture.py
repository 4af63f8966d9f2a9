"""Captures that fail in every way, and the stream, the memory and the reasons after them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from streamenc.engine import cudagraph
from streamenc.engine.cudagraph import Generation, GraphedStep, Recorder
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.pages import Pages, by_index
from streamenc.models.model import Model
from streamenc.stream import Stream
from tests.engine.test_cudagraph import lanes_of
from tests.support import zoo
from tests.support.fakecuda import FakeCuda, fake_cuda

DEVICE = torch.device("cuda", 0)
# By where a capture fails, what is told.
FAILURES = {
    "begin": "operation not permitted",
    "begin, capturing": "an error half-way",
    "call": "when stream is capturing",
    "call and end": "the capture was invalidated",
    "end": "the capture was invalidated",
    "instantiate": "the graph is instantiated",
    "memory": "out of memory",
    "memory and end": "the capture was invalidated",
}


@pytest.fixture
def cuda(monkeypatch) -> Iterator[FakeCuda]:
    with fake_cuda() as cuda:

        def step(model: Model, x: torch.Tensor, pages: Pages, places: torch.Tensor) -> torch.Tensor:
            cuda.work()
            return by_index(model, x, pages, places)

        monkeypatch.setattr(cudagraph, "by_index", step)
        yield cuda
        assert not cuda.harm


@pytest.fixture
def generation(cuda) -> Generation:
    return Generation(Recorder(DEVICE))


class Captured:
    """A model's steps by graphs of the fake device, beside the same ones without."""

    def __init__(self, cuda: FakeCuda, generation: Generation, name: str = "nano") -> None:
        self.model = zoo.model(name, "encoder")
        self.graphs = GraphedStep(self.model, generation)
        self.cuda = cuda
        self.ours, self.theirs, self.inputs = lanes_of(self.model, 3)
        self.at = 0

    def step(self, *lanes: int) -> None:
        """A step of these lanes, which gives what it gives without a graph."""
        x = self.inputs[self.at % len(self.inputs)][[*lanes]]
        self.at += 1
        places = self.ours.places(lanes, len(lanes))
        with torch.inference_mode():
            y = self.graphs(x, self.ours, places)
            wanted = by_index(self.model, x, self.theirs, places)
            assert torch.equal(y, wanted)
            assert torch.equal(self.graphs.after(y, 2), self.model.after(wanted, 2))
        assert self.cuda.current is self.cuda.usual


def test_calls_warm_up_and_are_captured_on_one_stream_for_all(cuda, generation):
    first, second = Captured(cuda, generation), Captured(cuda, generation, "mimi")
    for lanes in ((0,), (1, 2), (2, 0)):
        first.step(*lanes)
        second.step(*lanes)
    (side,) = {*cuda.captured_on}
    assert len(cuda.captured_on) == 8 and side is not cuda.usual
    assert {*cuda.warmed_on} == {side} and len(cuda.streams) == 2
    assert cuda.handles == 1 and first.graphs.held == second.graphs.held == 4
    assert not first.graphs.reasons | second.graphs.reasons


@pytest.mark.parametrize("where", FAILURES)
def test_after_a_failed_capture_steps_run_on_the_usual_stream(cuda, generation, where, caplog):
    stays, fails = Captured(cuda, generation), Captured(cuda, generation, "mimi")
    stays.step(0, 1)
    cuda.fails = where
    warmed = len(cuda.warmed_on)
    for lanes in ((0, 1), (1, 0), (2, 1)):
        fails.step(*lanes)
    eager = cuda.warmed_on[warmed + cudagraph.WARMUP_RUNS :]
    assert len(eager) == 3 and {*eager} == {cuda.usual}
    assert FAILURES[where] in fails.graphs.reasons["step"]
    assert "and more" not in fails.graphs.reasons["step"]
    cuda.fails = ""
    for lanes in ((0, 1), (1, 2)):
        stays.step(*lanes)
    assert stays.graphs.held == 2 and not stays.graphs.reasons
    # The graph that failed has not ended before the others.
    assert not cuda.ended and cuda.handles == (2 if where == "begin, capturing" else 1)
    told = [record for record in caplog.records if "mimi" in record.getMessage()]
    assert {record.getMessage().partition(" its ")[2].partition(":")[0] for record in told} == {
        *fails.graphs.reasons
    }


def test_a_stream_that_a_failure_left_in_a_capture_is_not_used_again(cuda, generation):
    fails, others = Captured(cuda, generation), Captured(cuda, generation, "mimi")
    cuda.fails = "begin, capturing"
    fails.step(0)
    cuda.fails = ""
    others.step(0)
    assert others.graphs.held == 2
    assert not any(stream.capturing for stream in cuda.captured_on)


def test_a_size_without_memory_leaves_the_others_their_graphs(cuda, generation):
    steps = Captured(cuda, generation)
    steps.step(0)
    cuda.fails = "memory"
    steps.step(0, 1)
    cuda.fails = ""
    for lanes in ((1, 2), (0,), (0, 1, 2)):  # no second try while streams are live
        steps.step(*lanes)
    assert "out of memory" in steps.graphs.reasons["step"]
    held = steps.graphs.held
    x = steps.inputs[0][:2]
    steps.graphs.warm(x, steps.ours, 2)
    steps.step(1, 2)
    assert not steps.graphs.reasons and steps.graphs.held == held + 1


def test_a_pool_ends_with_its_last_graph_and_the_next_is_another(cuda, generation):
    steps = Captured(cuda, generation)
    for cycle in range(3):
        steps.step(0)
        steps.step(1, 2)
        assert cuda.handles == cycle + 1 and len(cuda.pools) == 1
        steps.graphs.forget()
        assert not steps.graphs.held and not cuda.pools
    assert not steps.graphs.reasons and cuda.ended == 3 * 4


def test_one_models_graphs_do_not_end_while_anothers_are_replayed(cuda, generation):
    """In torch 2.13 any graph's end takes memory from all others of its stream."""
    stays, goes = Captured(cuda, generation), Captured(cuda, generation, "mimi")
    stays.step(0)
    for _ in range(3):
        goes.step(0)
        goes.graphs.forget()
        stays.step(0)
        assert not cuda.ended and not goes.graphs.held
    stays.graphs.forget()
    assert cuda.ended == 2 + 3 * 2 and not cuda.pools


def test_a_generation_is_retired_together_and_captured_anew(cuda, generation, monkeypatch):
    monkeypatch.setattr(cudagraph, "MAX_UNUSED", 3)
    stays, goes = Captured(cuda, generation), Captured(cuda, generation, "mimi")
    stays.step(0)
    for _ in range(3):
        goes.step(0)
        goes.graphs.forget()
    assert cuda.ended == 2 + 3 * 2 and not stays.graphs.held
    stays.step(0)
    assert stays.graphs.held == 2 and cuda.handles == 3
    goes.graphs.warm(goes.inputs[0][:1], goes.ours, 2)
    goes.graphs.forget()
    goes.graphs.warm(goes.inputs[0][:1], goes.ours, 2)
    assert stays.graphs.held == goes.graphs.held == 2  # warming captures anew for all
    stays.step(0)


def test_a_size_without_memory_costs_no_other_model_its_graphs(cuda, generation, monkeypatch):
    """Also where its capture had retired the generation before."""
    monkeypatch.setattr(cudagraph, "MAX_UNUSED", 3)
    stays, goes = Captured(cuda, generation), Captured(cuda, generation, "mimi")
    stays.step(0)
    for _ in range(2):
        goes.step(0)
        goes.graphs.forget()
    work, cuda.fails = cuda.work, "memory"

    def fails_once() -> None:
        try:
            work()
        except torch.OutOfMemoryError:
            cuda.fails = ""
            raise

    monkeypatch.setattr(cuda, "work", fails_once)
    goes.graphs.warm(goes.inputs[0][:1], goes.ours, 2)
    assert "out of memory" in goes.graphs.reasons["step"] and cuda.ended
    assert stays.graphs.held == 2


def test_graphs_that_somebody_dropped_end_with_the_next_capture(cuda, generation):
    steps = Captured(cuda, generation)
    steps.step(0)
    del steps
    assert not cuda.ended
    Captured(cuda, generation, "mimi").step(0)
    assert cuda.ended == 2 and cuda.handles == 2


def test_the_quantisers_graph_has_the_most_codebooks_and_gives_fewer(cuda, generation):
    steps = Captured(cuda, generation)
    model, graphs = steps.model, steps.graphs
    y = torch.randn(2, model.config.latent, 1, dtype=torch.float64)
    with torch.inference_mode():
        for codebooks in (2, 3, 1, 2, 3, None, 1, None):
            assert torch.equal(graphs.after(y, codebooks), model.after(y, codebooks))
    assert len(cuda.captured_on) == 3 and graphs.held == 1


def test_nothing_is_captured_while_streams_are_live_unless_it_was_warmed(cuda, generation, caplog):
    steps = Captured(cuda, generation)
    steps.graphs.on_demand = False
    steps.step(0)
    steps.step(0, 1)
    assert not cuda.captured_on and {*steps.graphs.reasons} == {"step", "after"}
    assert "call Engine.warm" in steps.graphs.reasons["step"] and len(caplog.records) == 2
    steps.graphs.warm(steps.inputs[0][:2], steps.ours, 2)
    assert len(cuda.captured_on) == 2 and not steps.graphs.reasons
    steps.step(1, 2)
    assert not steps.graphs.reasons
    steps.step(0)
    assert "1 lanes" in steps.graphs.reasons["step"] and len(cuda.captured_on) == 2


def test_lanes_that_flush_keep_their_graphs(cuda, generation):
    """A stream that is alone, ends and goes on, as after each gap in its sound."""
    model = zoo.model("nano", "encoder")
    graphs = GraphedStep(model, generation)
    lanes = IndexedLanes(model, 2, graphs, graphs.after, graphs.forget)
    x = zoo.signal(model, model.spec.lead + model.spec.hop)
    for _ in range(3):
        stream = Stream(model)
        stream.push(x[..., : model.spec.lead])
        with torch.inference_mode():
            stream.take(x[..., model.spec.lead :])
        lanes.join(stream)
        (codes,) = lanes.step({stream: None}).values()
        assert torch.equal(codes, Stream(model).push(x)[..., -codes.shape[-1] :])
        lanes.leave(stream)
    assert graphs.held == len(cuda.captured_on) == 2
    lanes.release()
    assert not graphs.held and cuda.ended == 2


def test_a_thread_has_a_generation_for_each_device():
    from concurrent.futures import ThreadPoolExecutor

    other = torch.device("cuda", 1)
    here = cudagraph.generation_of(DEVICE)
    assert here is cudagraph.generation_of(DEVICE) is not cudagraph.generation_of(other)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(cudagraph.generation_of, DEVICE).result() is not here
