"""Graphs of steps: what is kept of them, with a capture that plays a graph on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.cudagraph import GraphedStep, Replay
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.pages import Pages, by_index
from streamenc.models.signal import Scaled, Signal
from streamenc.stream import Stream
from tests.support import zoo

capturable = pytest.mark.parametrize(
    ("name", "side"),
    [case for case in zoo.CASES if not zoo.model(*case).uncapturable],
    ids="-".join,
)


class Player:
    """Warms a call up and replays it into the same memory each time, as a graph does."""

    def __init__(self) -> None:
        self.captures = 0

    def __call__(self, call: Callable[[], Signal]) -> Replay:
        self.captures += 1
        output = call()

        def replay() -> None:
            with torch.inference_mode():
                for static, new in zip(parts(output), parts(call()), strict=True):
                    static.copy_(new)

        return Replay(replay, output)


def parts(signal: Signal) -> tuple[Tensor, ...]:
    return tuple(signal) if isinstance(signal, Scaled) else (signal,)


def lanes_of(model, count):
    """Pages of several lanes past their first step, twice, and inputs of later steps for all."""
    items = model.spec.lead + 3 * model.spec.hop
    with torch.inference_mode():
        x = model.before(zoo.signal(model, items, batch=count))
        _, state = model.step(x[..., : model.spec.lead], None)
        both = [Pages(model, states.lane(state, 0), count + 1) for _ in range(2)]
        for pages in both:
            pages.put(range(count), state)
    return *both, x[..., model.spec.lead :].split(model.spec.hop, dim=-1)


def held(pages):
    """What the lanes hold, all but the one that nobody reads."""
    return [tensor[:-1] for tensor in pages.tensors]


@capturable
def test_it_computes_what_the_step_computes_and_idle_lanes_stay(name, side):
    model = zoo.model(name, side)
    ours, theirs, inputs = lanes_of(model, 3)
    run = GraphedStep(model, Player())
    with torch.inference_mode():
        for x, lanes in zip(inputs, ([0, 1, 2], [2, 0], [1]), strict=True):
            before = [tensor.clone() for tensor in held(ours)]
            places = ours.places(lanes, 4)
            x = torch.cat((x[lanes], x[:1].expand(4 - len(lanes), -1, -1)))
            y, wanted = run(x, ours, places), by_index(model, x, theirs, places)
            assert torch.equal(y, wanted)
            for a, b in zip(parts(run.after(y, None)), parts(model.after(wanted)), strict=True):
                assert torch.equal(a, b)
            for new, old, same in zip(held(ours), before, held(theirs), strict=True):
                assert torch.equal(new[:4], same[:4])
                idle = sorted({0, 1, 2, 3} - {*lanes})
                assert torch.equal(new[idle], old[idle])


@capturable
def test_the_warm_up_steps_nobody(name, side):
    """Streams that step after a capture go on as if there had been none."""
    model = zoo.model(name, side)
    ours, theirs, (x, *_) = lanes_of(model, 2)
    player = Player()

    def warm_only(call):
        player(call)
        raise RuntimeError("that was the warm-up")

    with torch.inference_mode():
        places = ours.places([0, 1], 2)
        y = GraphedStep(model, warm_only)(x, ours, places)
        assert player.captures == 1 and torch.equal(y, by_index(model, x, theirs, places))
    for a, b in zip(held(ours), held(theirs), strict=True):
        assert torch.equal(a[:3], b[:3])


def test_an_output_is_the_callers_own():
    model = zoo.model("mimi", "encoder")
    pages, _, inputs = lanes_of(model, 2)
    run, everyone = GraphedStep(model, Player()), pages.places([0, 1], 2)
    first = run(inputs[0], pages, everyone)
    codes = run.after(first, 2)
    kept = first.clone(), codes.clone()
    run.after(run(inputs[1], pages, everyone), 2)
    assert torch.equal(first, kept[0]) and torch.equal(codes, kept[1])


def test_one_graph_for_each_bucket_and_place(caplog):
    model = zoo.model("nano", "encoder")
    pages, others, (x, *_) = lanes_of(model, 4)
    player = Player()
    run = GraphedStep(model, player)
    for lanes in ([2], [0, 1], [0, 1, 2, 3], [3, 1], [0]):
        run(x[: len(lanes)], pages, pages.places(lanes, len(lanes)))
    assert player.captures == run.held == 3
    run(x, others, others.places(range(4), 4))
    assert player.captures == run.held == 4
    run.forget()
    assert not run.held and not caplog.records


def test_a_failed_capture_is_said_once_and_computed_without(caplog):
    def refuses(call):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    model = zoo.model("mimi", "encoder")
    ours, theirs, inputs = lanes_of(model, 2)
    run, everyone = GraphedStep(model, refuses), ours.places([0, 1], 2)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        for x in inputs:
            assert torch.equal(run(x, ours, everyone), by_index(model, x, theirs, everyone))
    (record,) = caplog.records
    assert "operation not permitted when stream is capturing" in record.getMessage()
    assert "and more" not in record.getMessage() and list(run.reasons) == ["step"]


def test_only_what_torch_raises_is_a_failed_capture():
    def broken(call):
        raise TypeError("a bug")

    model = zoo.model("mimi", "encoder")
    pages, _, inputs = lanes_of(model, 1)
    with pytest.raises(TypeError, match="a bug"):
        GraphedStep(model, broken)(inputs[0], pages, pages.places([0], 1))


def test_without_cuda_it_says_why(caplog):
    model = zoo.model("nano", "encoder")
    run = GraphedStep(model)
    assert run.reasons == dict.fromkeys(("step", "after"), "the model is on cpu")
    assert "no CUDA graph" in caplog.text
    pages, _, inputs = lanes_of(model, 1)
    assert run(inputs[0], pages, pages.places([0], 1)).shape[0] == 1


def test_what_branches_on_values_and_video_are_not_captured():
    others = [case for case in zoo.CASES if zoo.model(*case).uncapturable]
    assert ("encodec-48k", "decoder") in others
    assert {case for case in zoo.CASES if zoo.model(*case).spec.input.axes} <= {*others}
    player = Player()
    for case in others:
        assert GraphedStep(zoo.model(*case), player).reasons
    assert not player.captures


def test_lanes_run_by_graphs_and_drop_them_with_the_memory():
    model = zoo.model("mimi", "encoder")
    player = Player()
    graphs = GraphedStep(model, player)
    lanes = IndexedLanes(model, 4, graphs, graphs.after, graphs.forget)
    pairs = [(Stream(model), Stream(model)) for _ in range(3)]
    signals = [
        zoo.signal(model, model.spec.lead + 3 * model.spec.hop, seed=seed) for seed in range(3)
    ]
    at = 0
    for size in (model.spec.lead, *[model.spec.hop] * 3):
        wanted = {}
        for (ours, solo), signal in zip(pairs, signals, strict=True):
            chunk = zoo.cut(signal, at, at + size)
            wanted[ours] = solo.push(chunk)
            if not at:
                ours.push(chunk)
                lanes.join(ours)
            else:
                with torch.inference_mode():
                    ours.take(chunk)
        if at:
            for stream, codes in lanes.step(dict.fromkeys(wanted)).items():
                assert torch.equal(codes, wanted[stream])
        at += size
    assert player.captures == graphs.held == 2
    for ours, _ in pairs:
        lanes.leave(ours)
    assert graphs.held == 2
    lanes.release()
    assert not graphs.held
