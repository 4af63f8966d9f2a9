"""Whether a spec is true, by measurement: what steps take and give, and what reaches an output."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor

from streamenc.models.signal import Signal, scale
from streamenc.stream import Stream
from streamenc.testing.comparison import difference
from streamenc.testing.signals import joined, raw, replaced
from streamenc.testing.subject import Subject

# By this part of the tolerance an output must change to depend on an input.
DEPENDS = 1e-3


def check_steps(subject: Subject) -> None:
    """Steps take and give what the spec says, also several hops at once."""
    model, spec = subject.model, subject.model.spec
    for name in ("lead", "hop", "hop_out"):
        if getattr(spec, name) < 1:
            subject.fail(f"its spec says {name}={getattr(spec, name)}; wanted at least 1")
    if model.steps != spec.steps:
        subject.fail(f"its layers go by {model.steps}; its spec says {spec.steps}")
    stream = Stream(raw(model))
    steps = [("the first step", spec.lead, spec.lead_out)]
    for hops in (1, 1, 2, 5):
        steps.append((f"a step of {hops} hops", hops * spec.hop, hops * spec.hop_out))
    for seed, (step, taken, promised) in enumerate(steps):
        stream.hops = max(1, taken // spec.hop) if seed else 1
        given = joined([stream.push(subject.signal(taken, seed=40 + seed))]).shape[2]
        if given != promised:
            subject.fail(
                f"{step} took {taken} items and gave {given}; by lead_out={spec.lead_out} and "
                f"hop_out={spec.hop_out} of the spec it is {promised}"
            )
    _check_output(subject, Stream(model).push(subject.signal(spec.lead + spec.hop, seed=45)))


def _check_output(subject: Subject, y: Signal) -> None:
    """Whether an output is what the spec's port says."""
    spec = subject.model.spec
    port = spec.output
    if (scale(y) is not None) != (spec.scaled and port.kind == "codes"):
        subject.fail(f"its spec says scaled={spec.scaled} and a {type(y).__name__} came out")
    tensor = joined([y])
    dtype = torch.int64 if port.kind == "codes" else subject.model.like.dtype
    got = (tensor.dtype, tensor.ndim, tensor.shape[1])
    if got != (dtype, 3 + port.axes, port.channels):
        subject.fail(
            f"{tensor.dtype} of shape {tuple(tensor.shape)} came out; its spec promises {dtype} "
            f"with {port.channels} channels and {3 + port.axes} axes"
        )


def check_reach(subject: Subject) -> None:
    """Outputs depend on the inputs that `reach` gives, on none outside, and on both ends."""
    reach, spec = subject.model.reach, subject.model.spec
    if (field := subject.model.receptive_field()) != spec.receptive_field:
        subject.fail(f"its spec says receptive_field={spec.receptive_field}; by its reach: {field}")
    items = spec.lead + (12 if subject.long else 60) * spec.hop
    if spec.limit:
        items = min(items, spec.lead + (spec.limit - spec.lead) // spec.hop * spec.hop)
    x, other = (subject.signal(items, seed=seed) for seed in (50, 51))
    stream = Stream(raw(subject.model))
    y = joined([stream.push(x)])

    def change(first: int, last: int, start: int, stop: int) -> Tensor:
        """What outputs first to last are with other inputs from start to stop."""
        changed = joined([Stream(raw(subject.model)).push(replaced(x, other, start, stop))])
        return changed[:, :, first : last + 1]

    reached: dict[str, bool] = {}
    for first, last in _ranges(subject, y.shape[2]):
        start, end = reach(first, last)
        ours = y[:, :, first : last + 1]
        tried = f"outputs {first} to {last}" if first < last else f"output {first}"
        for where, a, b in (("before", 0, start or 0), ("after", end + 1, items)):
            if a < b and difference(change(first, last, a, b), ours, subject.tolerance):
                subject.fail(
                    f"by its reach {tried} depends on inputs {start} to {end} alone; it changes "
                    f"with those {where} them as well: reach is too small"
                )
        for which, at in (("first", start), ("last", end)):
            if at is not None and 0 <= at < items:
                key = f"{which} input that its reach gives, such as {at} for {tried}"
                if not any(reached.get(k) for k in reached if k.startswith(which)):
                    # Two items: windows of spectra often begin with a zero.
                    moved = change(
                        first, last, *((at, at + 2) if which == "first" else (at - 1, at + 1))
                    )
                    reached[key] = bool(difference(moved, ours, DEPENDS * subject.tolerance))
    for which in ("first", "last"):
        known = {key: found for key, found in reached.items() if key.startswith(which)}
        if known and not any(known.values()):
            subject.fail(f"no output depends on the {next(iter(known))}: reach is too large")


def _ranges(subject: Subject, outputs: int) -> Iterator[tuple[int, int]]:
    """Output items to try: the ends of steps, whole steps, and some between."""
    spec, chance = subject.model.spec, random.Random(f"{subject.seed} reach")
    middle = spec.lead_out + (outputs - spec.lead_out) // (2 * spec.hop_out) * spec.hop_out
    final = outputs - spec.hop_out
    singles = [0, spec.lead_out - 1, middle, middle + spec.hop_out - 1, final, outputs - 1]
    singles += [chance.randrange(outputs) for _ in range(3)]
    for item in dict.fromkeys(singles):
        if 0 <= item < outputs:
            yield item, item
    if spec.hop_out > 1:
        yield middle, middle + spec.hop_out - 1
