"""Streams in company: in a batch, and in lanes that join, idle and leave, each is as if alone."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.lanes import Lanes, eagerly
from streamenc.models.model import Model
from streamenc.models.signal import Signal, cut, items, row
from streamenc.stream import Stream
from streamenc.testing.comparison import code_difference
from streamenc.testing.signals import joined, raw
from streamenc.testing.subject import Subject, run

# Streams that come one after the other, and lanes that there are for them.
STREAMS, LANES = 6, 3


def check_batch(subject: Subject) -> None:
    """Each of a batch is what it is alone."""
    model, batch = subject.model, 3
    for hops in (1, 3):
        x = subject.signal(subject.items_for(6, 0.4), batch=batch, seed=11)
        counts = [2 * model.spec.hop + 1]
        together = subject.latents(x, counts, batch=batch, hops=hops)
        codes = run(model, x, counts, batch=batch, hops=hops)
        for index in range(batch):
            alone = subject.latents(row(x, index), counts, hops=hops)
            what = f"stream {index} of a batch of {batch}, against the same one alone:"
            _equal_to_alone(subject, together[index : index + 1], alone, what)
            if model.spec.output.kind == "codes" and (
                wrong := code_difference(model, codes[index : index + 1], alone)
            ):
                subject.fail(f"{what} codes differ: {wrong}")


def check_lanes(subject: Subject) -> None:
    """Streams that join, idle, leave, go on alone and come back give what they would alone."""
    model = raw(subject.model)
    hop, chance = model.spec.hop, random.Random(f"{subject.seed} lanes")
    lanes, waiting = Lanes(model, LANES), [_Passenger(subject, model, n) for n in range(STREAMS)]
    inside: list[_Passenger] = []
    outside: list[_Passenger] = []
    while waiting or inside or outside:
        if waiting and len(lanes) < LANES and chance.random() < 0.4:
            inside.append(waiting.pop())
            inside[-1].step_alone(model.spec.lead)
            lanes.join(inside[-1].stream)
        if outside and len(lanes) < LANES and chance.random() < 0.5:
            inside.append(outside.pop())
            lanes.join(inside[-1].stream)
        stepping = {p.stream: p for p in inside if p.left >= hop and chance.random() < 0.7}
        for passenger in stepping.values():
            passenger.take(hop)
        outputs = lanes.step(dict.fromkeys(stepping)) if stepping else {}
        for stream, y in outputs.items():
            if isinstance(y, Exception):
                raise y
            stepping[stream].compare(y, "in a lane beside others")
        done = [p for p in inside if p.left < hop or chance.random() < 0.05]
        if done:
            passenger = chance.choice(done)
            inside.remove(passenger)
            lanes.leave(passenger.stream)
            if passenger.left < hop:
                passenger.end()
            else:  # it goes on by itself, or in another lane
                passenger.step_alone(hop)
                outside.append(passenger)


class _Passenger:
    """A stream for the lanes, and what comes out of the same one alone, computed before."""

    def __init__(self, subject: Subject, model: Model, seed: int) -> None:
        self.subject = subject
        self.signal = subject.signal(subject.items_for(subject.most_hops, 0.3), seed=20 + seed)
        self.alone = run(model, self.signal, [items(self.signal)])
        self.stream, self.taken, self.given = Stream(model), 0, 0

    @property
    def left(self) -> int:
        return items(self.signal) - self.taken

    def take(self, items: int) -> None:
        start, self.taken = self.taken, self.taken + items
        with torch.inference_mode():
            self.stream.take(cut(self.signal, start, self.taken))

    def step_alone(self, items: int) -> None:
        """A step outside of the lanes, as the first one always is."""
        self.take(items)
        with torch.inference_mode():
            self.compare(self.stream.step(None), "before or between its times in a lane")

    def end(self) -> None:
        self.take(self.left)
        self.compare(self.stream.flush(), "at its end, after it left its lane")
        if self.given != self.alone.shape[2]:
            self.subject.fail(
                f"a stream that was in lanes gave {self.given} items, alone {self.alone.shape[2]}"
            )

    def compare(self, y: Signal, where: str) -> None:
        ours = joined([y])
        start, self.given = self.given, self.given + ours.shape[2]
        what = f"a stream {where}, {self.taken} items after its start:"
        _equal_to_alone(self.subject, ours, self.alone[:, :, start : self.given], what)


def check_idle_lanes(subject: Subject) -> None:
    """A lane that is computed along, on whatever input, goes on as if nothing had been."""
    model = raw(subject.model)
    spec, steps = model.spec, 3
    items = spec.lead + (4 if subject.long else 2 * steps) * spec.hop
    signals = [subject.signal(items, seed=30 + seed) for seed in range(3)]
    idle, busy, noise = streams = [Stream(model) for _ in signals]
    begun = spec.lead + spec.hop
    for stream, x in zip(streams, signals, strict=True):
        stream.push(cut(x, 0, begun))
    alone = Stream(model)
    alone.push(cut(signals[0], 0, begun))
    if idle.state is None or not any(True for _ in states.leaves(idle.state)):
        return  # nothing to remember, and so nothing to touch
    with torch.inference_mode():
        pool = states.allocate(idle.state, 2)
        for index, stream in enumerate((idle, busy)):
            states.put_lane(pool, index, stream.state)
        active = torch.tensor([False, True], device=model.like.device)
        for step in range(steps):
            start = begun + step * spec.hop
            if start + spec.hop > items:
                break
            inputs: list[Tensor] = []
            for stream, x in ((noise, signals[2]), (busy, signals[1])):
                stream.take(cut(x, start, start + spec.hop))
                inputs.append(stream.next_input())
            eagerly(model, torch.cat(inputs), pool, active)
        idle.state = states.lane(pool, 0)
    rest = cut(signals[0], begun, items)
    ours = joined([idle.push(rest), idle.flush()])
    theirs = joined([alone.push(rest), alone.flush()])
    what = f"after {steps} steps of another lane, in which it idled, a stream's"
    promise = (
        "an idle lane must stay as it was: only what is not visible at its position may be written "
        "in place"
    )
    subject.same(ours, theirs, 0, what, promise)


def _equal_to_alone(subject: Subject, ours: Tensor, alone: Tensor, what: str) -> None:
    # Both of them are rounded.
    promise = f"streams in company equal those alone within {2 * subject.tolerance:.0e}"
    subject.same(ours, alone, 2 * subject.tolerance, what, promise)
