"""Streams in company: in a batch, and in lanes that join, idle and leave, each is as if alone."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.lanes import Lanes, eagerly
from streamenc.models.model import Model, Signal
from streamenc.stream import Stream
from streamenc.testing.comparison import code_difference
from streamenc.testing.signals import cut, joined, length, raw, row
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
    lanes, waiting = Lanes(model, LANES), [_Pair(subject, model, seed) for seed in range(STREAMS)]
    inside: list[_Pair] = []
    outside: list[_Pair] = []
    for pair in waiting:
        pair.alone_step(model.spec.lead)
    while waiting or inside or outside:
        for queue, likely in ((waiting, 0.4), (outside, 0.5)):
            if queue and len(lanes) < LANES and chance.random() < likely:
                inside.append(queue.pop())
                lanes.join(inside[-1].ours)
        steps = {p.ours: p for p in inside if p.left >= hop and chance.random() < 0.7}
        expected = {stream: pair.take(hop) for stream, pair in steps.items()}
        outputs = lanes.step(dict.fromkeys(expected)) if expected else {}
        for stream, y in outputs.items():
            steps[stream].compare(y, expected[stream], "in a lane beside others")
        done = [pair for pair in inside if pair.left < hop or chance.random() < 0.05]
        if done:
            pair = chance.choice(done)
            inside.remove(pair)
            lanes.leave(pair.ours)
            if pair.left < hop:
                pair.take(pair.left)
                pair.compare(pair.ours.flush(), pair.solo.flush(), "at its end, out of a lane")
            else:  # it goes on by itself, or in another lane
                pair.alone_step(hop)
                outside.append(pair)


class _Pair:
    """A stream for the lanes, and the same by itself, which it has to equal step by step."""

    def __init__(self, subject: Subject, model: Model, seed: int) -> None:
        self.subject = subject
        self.signal = subject.signal(subject.items_for(subject.most_hops, 0.3), seed=20 + seed)
        self.ours, self.solo, self.at = Stream(model), Stream(model), 0

    @property
    def left(self) -> int:
        return length(self.signal) - self.at

    def take(self, items: int) -> Signal:
        """Gives the next items to both streams; returns what the solo one makes of them."""
        start, self.at = self.at, self.at + items
        chunk = cut(self.signal, start, self.at)
        with torch.inference_mode():
            self.ours.take(chunk)
        return self.solo.push(chunk)

    def alone_step(self, items: int) -> None:
        """A step outside of the lanes, as the first one always is."""
        expected = self.take(items)
        with torch.inference_mode():
            self.compare(self.ours.step(None), expected, "outside of its lane")

    def compare(self, ours: Signal, theirs: Signal, where: str) -> None:
        what = f"a stream {where}, {self.at} items after its start:"
        _equal_to_alone(self.subject, joined([ours]), joined([theirs]), what)


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
