"""Lanes: streams that join, idle and leave compute what they would alone."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.slots import Lanes
from streamenc.errors import InputError, UsageError
from streamenc.models.base import Model, Scaled, Signal
from streamenc.stream import Stream
from tests.compare import assert_close, poisoned_memory
from tests.models import zoo

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

cases = pytest.mark.parametrize(("name", "side"), zoo.CASES, ids=["-".join(c) for c in zoo.CASES])


def entered(model: Model, items: int, seed: int) -> tuple[Signal, Tensor]:
    """A signal as a user has it, and as a lane takes it."""
    x = zoo.signal(model, items, seed=seed)
    with torch.inference_mode():
        return x, model.enter(x)


def check(ours: Signal, theirs: Signal) -> None:
    if isinstance(ours, Scaled):
        assert torch.equal(ours.codes, theirs.codes)
        assert_close(ours.scale, theirs.scale, 1e-10)
    elif ours.is_floating_point():
        assert_close(ours, theirs, 1e-10)
    else:
        assert torch.equal(ours, theirs)


class Solo:
    """A stream by itself, which a lane has to equal step by step."""

    def __init__(self, model: Model, seed: int) -> None:
        # Past Mimi's attention window of 10 frames and back to its start again.
        steps = 4 if model.spec.hop > 500 or model.spec.hop_out > 500 else 30
        self.signal, self.x = entered(model, model.spec.lead + steps * model.spec.hop + 5, seed)
        self.stream, self.at = Stream(model), 0

    def left(self) -> int:
        return self.x.shape[-1] - self.at

    def next(self, items: int) -> tuple[Tensor, Signal]:
        start, self.at = self.at, self.at + items
        expected = self.stream.push(zoo.cut(self.signal, start, self.at))
        return self.x[..., start : self.at], expected


@cases
def test_any_schedule_equals_solo_streams(name, side):
    model = zoo.model(name, side)
    hop, chance = model.spec.hop, random.Random(name + side)
    lanes, solos, gone, joined = Lanes(model, 3), {}, [], 0
    while joined < 6 or solos:
        if joined < 6 and len(lanes) < 3 and chance.random() < 0.4:
            solo = Solo(model, seed=joined)
            x, expected = solo.next(model.spec.lead)
            ticket, y = lanes.join(x)
            check(y, expected)
            assert ticket not in solos and ticket not in gone
            solos[ticket], joined = solo, joined + 1
        inputs, expected = {}, {}
        for ticket, solo in solos.items():
            if solo.left() >= hop and chance.random() < 0.7:
                inputs[ticket], expected[ticket] = solo.next(hop)
        outputs = lanes.step(inputs)
        assert outputs.keys() == inputs.keys()
        for ticket, y in outputs.items():
            check(y, expected[ticket])
        ready = [t for t, s in solos.items() if s.left() < hop or chance.random() < 0.05]
        if ready:
            ticket = chance.choice(ready)
            solo = solos.pop(ticket)
            gone.append(ticket)
            if solo.left() < hop:
                tail, _ = solo.next(solo.left())
                y = lanes.leave(ticket, tail)
            else:
                y = lanes.leave(ticket)
            check(y, solo.stream.flush())
        assert len(lanes) == len(solos)
        for old in gone:
            with pytest.raises(UsageError, match=f"ticket {old}"):
                lanes.step({old: torch.zeros(1, 1, hop)})


@cases
def test_an_idle_lane_is_untouched(name, side):
    model = zoo.model(name, side)
    lanes = Lanes(model, 2)
    (_, idle), (_, busy) = (
        entered(model, model.spec.lead + 4 * model.spec.hop, seed) for seed in (1, 2)
    )
    lead, hop = model.spec.lead, model.spec.hop
    first, _ = lanes.join(idle[..., :lead])
    second, _ = lanes.join(busy[..., :lead])
    with torch.inference_mode():
        _, before = model.step(idle[..., :lead], None)
    for step in range(3):
        start = lead + step * hop
        lanes.step({second: busy[..., start : start + hop]})
    after = lanes.take(first)
    for old, new in zip(states.leaves(before), states.leaves(after), strict=True):
        # A ring has been written ahead, into slots that its position does not show.
        if old.ndim < 4:
            assert torch.equal(old, new)
    with torch.inference_mode():
        going_on = [model.step(idle[..., lead : lead + hop], state)[0] for state in (before, after)]
    assert torch.equal(*going_on)


def test_full_lanes_refuse_another_stream():
    model = zoo.model("mimi", "encoder")
    lanes, x = Lanes(model, 2), torch.zeros(1, 1, model.spec.lead, dtype=torch.float64)
    tickets = [lanes.join(x)[0] for _ in range(2)]
    with pytest.raises(UsageError, match="all 2 lanes"):
        lanes.join(x)
    lanes.leave(tickets[0])
    third, _ = lanes.join(x)
    assert third not in tickets
    with pytest.raises(UsageError, match=f"ticket {tickets[0]}"):
        lanes.leave(tickets[0])
    assert lanes.step({}) == {}


@pytest.mark.parametrize("shape", [(1, 1, 23), (1, 2, 24), (2, 1, 24), (1, 24), (1, 1, 48)])
def test_other_shapes_leave_all_lanes_unharmed(shape):
    model = zoo.model("mimi", "encoder")
    lanes, alone = Lanes(model, 2), Lanes(model, 2)
    x = 0.3 * torch.randn(1, 1, 24, dtype=torch.float64)
    (good, _), (other, _) = lanes.join(x), lanes.join(-x)
    same, _ = alone.join(x)
    alone.join(-x)
    with pytest.raises(InputError):
        lanes.step({good: x, other: torch.zeros(shape, dtype=torch.float64)})
    if shape != (1, 1, 23) and shape != (1, 1, 48):  # which are lengths that a tail may have
        with pytest.raises(InputError):
            lanes.leave(other, torch.zeros(shape, dtype=torch.float64))
    assert torch.equal(lanes.step({good: x})[good], alone.step({same: x})[same])


def test_codebooks():
    model = zoo.model("mimi", "encoder")
    lanes, x = Lanes(model, 1), 0.3 * torch.randn(1, 1, 24, dtype=torch.float64)
    ticket, codes = lanes.join(x, codebooks=2)
    assert codes.shape == (1, 2, 1)
    assert lanes.step({ticket: x}, codebooks=1)[ticket].shape == (1, 1, 1)
    assert lanes.leave(ticket, x[..., :3], codebooks=3).shape == (1, 3, 1)
