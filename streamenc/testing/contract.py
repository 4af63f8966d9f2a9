"""check_model: whether a model keeps what every model promises."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import cycle

import torch
from torch import Tensor

from streamenc.errors import InputError, UsageError
from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal, cut, items, scale, values
from streamenc.state import State
from streamenc.stream import Stream
from streamenc.testing.company import check_batch, check_idle_lanes, check_lanes
from streamenc.testing.comparison import code_difference, difference, poisoned_memory
from streamenc.testing.measurement import check_reach, check_steps
from streamenc.testing.signals import (
    MakeSignal,
    joined,
    pieces,
    random_signal,
    recording,
)
from streamenc.testing.subject import Subject, chunks, fraction, run, told

# Of rounding alone, in models of some dozens of layers.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5}
# Half precision has no closeness to offline that is worth a promise; the bits are compared alone.
ROUGH_TOLERANCE = 0.1


@dataclass(frozen=True)
class Report:
    """What `check_model` did.

    Attributes:
        name: Of the model, with its kinds.
        dtype: In which it was tested.
        tolerance: Relative error that was allowed between a stream and offline.
        seconds: What each check took, by name, in the order in which they ran.
        skipped: Checks that do not apply, or were left out, and why.
    """

    name: str
    dtype: str
    tolerance: float
    seconds: dict[str, float]
    skipped: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.dtype}, equal within {self.tolerance:.0e}:"]
        lines += [f"  {check}: {seconds:.2f} s" for check, seconds in self.seconds.items()]
        lines += [f"  {check}: skipped, {why}" for check, why in self.skipped.items()]
        return "\n".join(lines)


def check_model(
    model: Model,
    *,
    dtype: torch.dtype | None = None,
    examples: int = 10,
    seed: int = 0,
    signal: MakeSignal = random_signal,
    tolerance: float | None = None,
    leave_out: Collection[str] = (),
) -> Report:
    """Checks an encoder or decoder against the whole contract of `Model`, on random signals.

    What the model itself raises comes with a note.

    Args:
        dtype: Of a copy that is tested in place of the model itself; None for the model as it is.
            In float64 all that is left is a mistake, not rounding.
        examples: Random cases of each check that has some.
        signal: Makes what the model takes, where noise and random codes are nothing to it.
        tolerance: Relative error that is allowed between a stream and offline; None for 1e-10 in
            float64 and 1e-5 in float32.
        leave_out: Names of checks, of `CHECKS`, that are not made.

    Raises:
        ContractError: With a sentence for the first thing that is not as promised.
        UsageError: For a name that is no check's.
    """
    if unknown := set(leave_out) - CHECKS.keys():
        raise UsageError(f"no checks: {', '.join(sorted(unknown))}; wanted {', '.join(CHECKS)}")
    if dtype is not None and dtype != model.like.dtype:
        model = copy.deepcopy(model).to(dtype)
        model.prepare()
    if tolerance is None:
        tolerance = TOLERANCES.get(model.like.dtype, ROUGH_TOLERANCE)
    subject = Subject(model, signal, tolerance, examples, seed)
    seconds: dict[str, float] = {}
    skipped = dict.fromkeys(leave_out, "left out")
    with poisoned_memory():
        for name, check in CHECKS.items():
            if name in skipped:
                continue
            start = time.perf_counter()
            with subject.during(name):
                why = check(subject)
            if why:
                skipped[name] = why
            else:
                seconds[name] = time.perf_counter() - start
    return Report(subject.name, subject.dtype, tolerance, seconds, skipped)


def check_cuts(subject: Subject) -> None:
    """A stream equals offline, and however it is cut, itself to the bit."""
    model = subject.model
    for chance in subject.chances("cuts"):
        hops, batch = chance.choice([1, 1, 2, 5]), chance.choice([1, 1, 3])
        items = subject.items_for(round(fraction(chance) * subject.most_hops), chance.random())
        x = subject.signal(items, batch=batch, seed=chance.randint(0, 99))
        one, other = (chunks(model, items, chance) for _ in range(2))
        latents: list[Tensor] = []
        y = run(recording(model, latents, model.after), x, one, batch=batch, hops=hops)
        again = run(model, x, other, batch=batch, hops=hops)
        whole = subject.offline(x)
        steps = f"{told(one)} and steps of {hops} hops"
        equal_to_offline(subject, joined(latents or [whole]), whole, steps)
        subject.same(again, y, 0, f"{told(other)} instead of {', '.join(map(str, one))}")
        if model.spec.output.kind == "codes" and (wrong := code_difference(model, y, whole)):
            subject.fail(f"{steps} codes differ from those of offline latents: {wrong}")


def check_far(subject: Subject) -> None:
    """Eight times an attention window of 20 hops; long steps have no longer memory than a few."""
    for hops in (1, 7):
        x = subject.signal(subject.items_for(12 if subject.long else 160, 0.4), seed=3)
        counts = [3 * subject.model.spec.hop + 1]
        y = subject.latents(x, counts, hops=hops)
        equal_to_offline(subject, y, subject.offline(x), f"far past every window, {told(counts)}")


def check_short(subject: Subject) -> None:
    """No item, one item, and every edge of the first step and the one after it."""
    spec = subject.model.spec
    edges = {0, 1, 2, spec.hop - 1, spec.hop, spec.hop + 1}
    for start in (spec.lead, spec.lead + spec.hop):
        edges |= {start - 1, start, start + 1}
    for count in sorted(edges):
        x = subject.signal(count, seed=count)
        whole = subject.offline(x)
        if whole.isnan().any():
            subject.fail(f"a stream of {count} items has outputs offline that are not numbers")
        equal_to_offline(subject, subject.latents(x, [spec.hop]), whole, f"of {count} items,")


def check_state(subject: Subject) -> None:
    """Memory is flat, and lanes can be copied: no step changes the state's form."""
    model, batch = subject.model, 3
    stream = Stream(model, batch=batch)
    stream.push(subject.signal(model.spec.lead, batch=batch))
    shapes = state_form(subject, stream.state, batch)
    stream.push(subject.signal(9 * model.spec.hop, batch=batch))
    after = state_form(subject, stream.state, batch)
    if after != shapes:
        subject.fail(
            f"after the first step the state had tensors {shapes}, after nine more hops {after}: "
            "its form must stay, so that memory is flat and lanes can be copied"
        )


def state_form(
    subject: Subject, state: State, batch: int
) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shapes and dtypes of a state's tensors, which it has alone, with the lane as first axis."""
    if isinstance(state, tuple):
        return [shape for part in state for shape in state_form(subject, part, batch)]
    if state is None:
        return []
    if not isinstance(state, Tensor):
        subject.fail(
            f"the state holds a {type(state).__name__}; wanted tensors, None and tuples of them: "
            "lanes and snapshots know nothing else"
        )
    if not state.ndim or state.shape[0] != batch:
        subject.fail(
            f"with a batch of {batch} a tensor of the state has shape {tuple(state.shape)}; wanted "
            "the lane as the first axis, or lanes share what they remember"
        )
    return [(tuple(state.shape), state.dtype)]


def check_snapshots(subject: Subject) -> None:
    """A snapshot goes on in a fresh stream, to the bit, and as often as one likes."""
    model = subject.model
    stranger = subject.signal(model.spec.lead + 3 * model.spec.hop, seed=77)
    for chance in subject.chances("snapshots"):
        hops = chance.choice([1, 3])
        hops_long = round(fraction(chance) * subject.most_hops)
        x = subject.signal(subject.items_for(hops_long, chance.random()), seed=4)
        split = round(fraction(chance) * items(x))
        _snapshot_goes_on(subject, x, split, hops, stranger)
    # At a step, where nothing waits, the end may follow.
    x = subject.signal(model.spec.lead + 2 * model.spec.hop, seed=8)
    _snapshot_goes_on(subject, x, items(x), 1, stranger)


def _snapshot_goes_on(subject: Subject, x: Signal, split: int, hops: int, stranger: Signal) -> None:
    model = subject.model
    straight, first = Stream(model, hops=hops), Stream(model, hops=hops)
    expected = joined([straight.push(x), straight.flush()])
    before = first.push(cut(x, 0, split))
    blob, pending = first.snapshot(), first.pending
    for time_ in ("once", "twice"):  # from the same bytes: nothing was written into them
        # What a model keeps elsewhere than in its state is now another stream's.
        Stream(model).push(stranger)
        second = Stream(model)
        second.restore(blob)
        if (second.hops, second.pushed, second.pending) != (hops, split, pending):
            subject.fail(f"a stream that was restored after {split} items is not where it was")
        rest = [second.push(cut(x, split, items(x))), second.flush()]
        what = f"restored {time_} from a snapshot after {split} items in steps of {hops} hops,"
        promise = "a snapshot holds all that the stream remembers"
        subject.same(joined([before, *rest]), expected, 0, what, promise)


def check_restart(subject: Subject) -> None:
    """After flush, and after reset, nothing of the stream before is left."""
    x = subject.signal(subject.items_for(5, 0.5), seed=6)
    stream = Stream(subject.model)
    expected = joined([stream.push(x), stream.flush()])
    promise = "nothing of the one before may be left"
    again = joined([stream.push(x), stream.flush()])
    subject.same(again, expected, 0, "in a new stream after flush", promise)
    stream.push(subject.signal(subject.items_for(4, 0.7), seed=7))
    stream.reset()
    again = joined([stream.push(x), stream.flush()])
    subject.same(again, expected, 0, "in a new stream after reset", promise)
    if given := items(stream.flush()):
        subject.fail(f"a stream that got nothing ended with {given} output items")


def check_bad_input(subject: Subject) -> None:
    """What a model must not take is refused, and the stream goes on as if it had not come."""
    model = subject.model
    x = subject.signal(subject.items_for(5, 0.5), seed=9)
    half = items(x) // 2
    stream, reference = Stream(model), Stream(model)
    before = stream.push(cut(x, 0, half))
    for what, bad in spoilt(model, subject.signal(3, seed=10)):
        try:
            stream.push(bad)
        except InputError:
            continue
        subject.fail(f"it took {what}; wanted an InputError that says what is wrong with it")
    rest = [stream.push(cut(x, half, items(x))), stream.flush()]
    expected = joined([reference.push(x), reference.flush()])
    what = "after bad input, which was refused,"
    subject.same(joined([before, *rest]), expected, 0, what, "the stream must go on unharmed")


def spoilt(model: Model, good: Signal) -> Iterator[tuple[str, object]]:
    """What `model` must not take, with a word for it; `good` has three items."""
    entries = model.spec.codebook_size
    x, factors = values(good), scale(good)
    if factors is not None:
        yield "codes without their scale", x
        yield "a scale of fewer items than the codes", Scaled(x, factors[:, :, :1])
        yield "a scale of NaN", Scaled(x, torch.full_like(factors, float("nan")))
        yield "codes that are no entries", Scaled(x + entries, factors)
    elif model.spec.input.kind == "codes":
        yield "codes that are no entries", x + entries
        yield "negative codes", -x - 1
        yield "codes as floats", x.double()
        yield "another batch", torch.cat([x] * 2, dim=0)
        yield "twice as many codebooks", torch.cat([x] * 2, dim=1)
        yield "no codebooks", x[:, :0]
    elif model.spec.input.kind == "text":
        yield "tokens that are no words", x + (1 << 40)
        yield "negative tokens", -x - 1
        yield "tokens as floats", x.double()
        yield "another batch", torch.cat([x] * 2, dim=0)
        yield "more tokens than a text has", torch.cat([x] * 2, dim=3)
        yield "a number", 3
        yield "a list of numbers", [1, 2]
    else:
        for value in (float("nan"), float("inf"), -float("inf")):
            spoilt_one = x.clone()
            spoilt_one[:, :, 1] = value
            yield f"an item of {value}", spoilt_one
        yield "16-bit integers", (x * 32768).to(torch.int16)
        yield "another batch", torch.cat([x] * 2, dim=0)
        yield "three times as many channels", torch.cat([x] * 3, dim=1)
        yield "an axis too many", x[None]
        yield "a single number", torch.tensor(0.5)
        yield "a string", "audio"


def check_codebooks(subject: Subject) -> str:
    """Fewer codebooks are the first ones, and their number may change at any frame."""
    model = subject.model
    most = model.spec.output.channels
    if model.spec.output.kind != "codes" or most == 1:
        return "it has no codebooks to choose from"
    x = subject.signal(subject.items_for(6, 0.3), seed=5)
    full = run(model, x, [model.spec.hop])
    stream, frame = Stream(model), 0
    wanted = cycle([None, 1, min(3, most), most, 2])
    for piece in pieces(x, [model.spec.hop + 3]):
        stream.codebooks = count = next(wanted)
        frame += _first_ones(subject, joined([stream.push(piece)]), full, frame, count)
    stream.codebooks = 1
    frame += _first_ones(subject, joined([stream.flush()]), full, frame, 1)
    if frame != full.shape[2]:
        subject.fail(f"with fewer codebooks there are {frame} frames instead of {full.shape[2]}")
    for outside in (0, most + 1, -1):
        try:
            stream.codebooks = outside
        except InputError:
            continue
        subject.fail(f"it has 1 to {most} codebooks and took {outside}; wanted an InputError")
    return ""


def _first_ones(
    subject: Subject, codes: Tensor, full: Tensor, frame: int, count: int | None
) -> int:
    """Frames of `codes`, which must be the first `count` codebooks from `frame` on."""
    frames = codes.shape[2]
    if codes.shape[1] != (count or full.shape[1]):
        subject.fail(f"{count} codebooks were asked for, {codes.shape[1]} came")
    if wrong := difference(codes, full[:, :count, frame : frame + frames], 0):
        subject.fail(f"{count} codebooks from frame {frame} on are not the first ones: {wrong}")
    return frames


def equal_to_offline(subject: Subject, ours: Tensor, whole: Tensor, what: str) -> None:
    spec = subject.model.spec
    if wrong := difference(ours, whole, subject.tolerance):
        subject.fail(
            f"a stream {what}: {wrong} from offline; equality={spec.equality!r} promises "
            f"{subject.tolerance:.0e} in {subject.dtype}"
        )


# By name, in the order in which they are made: what explains most comes first.
CHECKS: dict[str, Callable[[Subject], str | None]] = {
    "steps": check_steps,
    "state": check_state,
    "cuts": check_cuts,
    "short": check_short,
    "far": check_far,
    "restart": check_restart,
    "snapshots": check_snapshots,
    "bad input": check_bad_input,
    "codebooks": check_codebooks,
    "batch": check_batch,
    "idle lanes": check_idle_lanes,
    "lanes": check_lanes,
    "reach": check_reach,
}
