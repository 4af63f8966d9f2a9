"""`check_model` finds what is wrong with a model, and says so in a sentence that fits.

`Window` keeps every promise; each model after it breaks one of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.errors import StreamencError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform, Transform
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State
from streamenc.testing import CHECKS, ContractError, check_model, drive, random_signal
from tests.support.drive import audio_info, noise, sound

PAST, HOP, AHEAD = 3, 4, 2
SPAN = PAST + HOP + AHEAD


class Window(Model):
    """Frame k is a product with samples HOP * k - PAST to HOP * (k + 1) + AHEAD - 1.

    State: the samples that the next frame sees as well.
    """

    promises: dict[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, SPAN, generator=generator, dtype=torch.float64))
        spec = StreamSpec(
            name="window",
            input=Port("audio", Fraction(8000), 1),
            output=Port("features", Fraction(8000, HOP), 2),
            steps=Steps(lead=HOP + AHEAD, hop=HOP),
            equality="offline",
            receptive_field=SPAN,
        )
        self.spec = dataclasses.replace(spec, **self.promises)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        x = torch.cat((state, x), dim=2) if isinstance(state, Tensor) else F.pad(x, (PAST, 0))
        if end:
            frames = -(-(x.shape[2] - PAST) // HOP)
            x = F.pad(x, (0, max(0, HOP * frames + PAST + AHEAD - x.shape[2])))
        else:
            frames = max(0, (x.shape[2] - PAST - AHEAD) // HOP)
        windows = x[:, 0].unfold(1, SPAN, HOP)[:, :frames] if frames else x.new_zeros(1, 0, SPAN)
        y = (windows.expand(x.shape[0], -1, -1) @ self.weight.T).transpose(1, 2)
        return y, x[:, :, HOP * frames :].clone()

    @property
    def steps(self) -> Steps:
        return self.spec.steps

    def reach(self, first: int, last: int) -> tuple[int | None, int]:
        return HOP * first - PAST, HOP * (last + 1) + AHEAD - 1


class Codes(Window):
    """Three codebooks of 16 entries, finer and finer."""

    promises = {"output": Port("codes", Fraction(2000), 3, "uint16"), "codebook_size": 16}

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        codes = [(y[:, 0] * 10**digit).round().long() % 16 for digit in range(3)]
        return torch.stack(codes, dim=1)[:, :codebooks]


class NormalisesEachStep(Window):
    def step(self, x, state, *, end=False):
        y, state = super().step(x, state, end=end)
        return y / y.abs().amax(dim=(1, 2), keepdim=True) if y.shape[2] else y, state


class ShorterLead(Window):
    promises = {"steps": Steps(lead=HOP, hop=HOP)}


class PromisesOtherStepsThanItsLayers(Window):
    steps = Steps(lead=HOP, hop=HOP)


class HidesItsLookAhead(Window):
    promises = {"receptive_field": PAST + HOP}


class PromisesAnotherPort(Window):
    promises = {"output": Port("features", Fraction(2000), 3)}


class PromisesCodes(Window):
    promises = {"output": Port("codes", Fraction(2000), 2)}


class OneStateForAll(Window):
    def step(self, x, state, *, end=False):
        before = state[0] if isinstance(state, tuple) else None
        y, state = super().step(x, before, end=end)
        return y, (state, torch.ones(1))


class CountsInPython(Window):
    def step(self, x, state, *, end=False):
        before, count = state or (None, 0)
        y, state = super().step(x, before, end=end)
        return y, (state, count + 1)


class KeepsEverything(Window):
    def step(self, x, state, *, end=False):
        before, past = state or (None, x[:, :, :0])
        y, state = super().step(x, before, end=end)
        return y, (state, torch.cat((past, x), dim=2))


class RemembersOnItself(Window):
    """A gain from the stream's first sample, which is in no state."""

    def step(self, x, state, *, end=False):
        if state is None:
            self._gain = x[:, :, :1] if x.shape[2] else 1.0
        y, state = super().step(x, state, end=end)
        return y * self._gain, state


class NeverForgets(Window):
    streams = 0

    def step(self, x, state, *, end=False):
        self.streams += state is None
        y, state = super().step(x, state, end=end)
        return y + self.streams, state


class Trembles(Window):
    def step(self, x, state, *, end=False):
        y, state = super().step(x, state, end=end)
        return y + 1e-13 * torch.randn(y.shape), state


class WritesItsState(Window):
    def step(self, x, state, *, end=False):
        y, following = super().step(x, state, end=end)
        if end or state is None:
            return y, following
        return y, state.copy_(following)


class SubtractsTheOthers(Window):
    def step(self, x, state, *, end=False):
        return super().step(x - 0.5 * x.mean(dim=0), state, end=end)


class LooksAtItsNeighboursInLanes(Window):
    """In mid-stream alone, so that batches, which start at once, are as long as offline."""

    def step(self, x, state, *, end=False):
        y, following = super().step(x, state, end=end)
        return (y.flip(0) if state is not None and not end else y), following


class ReadsWhatNobodyWrote(Window):
    def step(self, x, state, *, end=False):
        y, state = super().step(x, state, end=end)
        return y + 0 * torch.empty_like(y), state


class TakesAnything(Window):
    def before(self, x):
        return torch.nan_to_num(super().before(x))


class LastCodebooksFirst(Codes):
    def after(self, y, codebooks=None):
        return super().after(y)[:, -(codebooks or 3) :]


class ReachTooSmall(Window):
    promises = {"receptive_field": SPAN - 1}

    def reach(self, first, last):
        start, end = super().reach(first, last)
        return start + 1, end


class ReachEndsTooEarly(Window):
    promises = {"receptive_field": SPAN - 1}

    def reach(self, first, last):
        start, end = super().reach(first, last)
        return start, end - 1


class ReachTooLarge(Window):
    promises = {"receptive_field": SPAN + 2}

    def reach(self, first, last):
        start, end = super().reach(first, last)
        return start - 2, end


class ReachEndsTooLate(Window):
    promises = {"receptive_field": SPAN + 2}

    def reach(self, first, last):
        start, end = super().reach(first, last)
        return start, end + 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_models_that_keep_every_promise(dtype):
    report = check_model(Window(), dtype=dtype, examples=3)
    assert [*report.seconds, *report.skipped] == [c for c in CHECKS if c != "codebooks"] + [
        "codebooks"
    ]
    assert str(report).startswith(f"window (audio to features) in {str(dtype)[6:]}, equal within")
    report = check_model(Codes(), dtype=dtype, examples=3)
    assert report.seconds.keys() == CHECKS.keys()


SENTENCES = [
    (NormalisesEachStep, r"a stream with chunks of \d.* output \d+ differs by .* from offline; "
     r"equality='offline' promises 1e-10 in float64", ()),
    (ShorterLead, r"the first step took 4 items and gave 0; by lead_out=1", ()),
    (HidesItsLookAhead, r"its spec says receptive_field=7; by its reach: 9", ()),
    (PromisesOtherStepsThanItsLayers, r"its layers go by Steps\(lead=4.*its spec says Steps"
     r"\(lead=6", ()),
    (PromisesAnotherPort, r"float64 of shape \(1, 2, 2\) came out; .* with 3 channels", ()),
    (PromisesCodes, r"float64 of shape .* promises torch.int64", ()),
    (OneStateForAll, r"with a batch of 3 a tensor of the state has shape \(1,\)", ()),
    (CountsInPython, r"the state holds a int; wanted tensors", ()),
    (KeepsEverything, r"after the first step the state had tensors .* its form must stay", ()),
    (RemembersOnItself, r"restored \w+ from a snapshot after \d+ items .* output \d+ differs", ()),
    (RemembersOnItself, r"a stream \w+ .* items after its start: output 0 differs by .*; streams "
     r"in company equal those alone", ("snapshots", "idle lanes")),
    (NeverForgets, r"in a new stream after flush output 0 differs .* nothing of the one before",
     ("cuts", "short", "far")),
    (Trembles, r"with chunks of .* instead of .*; they must be equal to the bit", ()),
    (WritesItsState, r"in which it idled, a stream's output 0 differs .*; an idle lane must", ()),
    (WritesItsState, r"a stream in a lane beside others, .* output 0 differs", ("idle lanes",)),
    (SubtractsTheOthers, r"stream 0 of a batch of 3, against the same one alone:", ("cuts",)),
    (LooksAtItsNeighboursInLanes, r"a stream in a lane beside others, .* output 0 differs",
     ("cuts", "batch", "idle lanes")),
    (ReadsWhatNobodyWrote, r"output 0 is not finite", ()),
    (TakesAnything, r"it took an item of nan; wanted an InputError", ()),
    (LastCodebooksFirst, r"1 codebooks from frame \d+ on are not the first ones: output", ()),
    (ReachTooSmall, r"by its reach output \d+ depends on inputs \d+ to \d+ alone; it changes with "
     r"those before them as well: reach is too small", ()),
    (ReachEndsTooEarly, r"by its reach output 0 depends on .* with those after them as well", ()),
    (ReachTooLarge, r"no output depends on the first input that its reach gives, such as \d+ for "
     r"output \d+: reach is too large", ()),
    (ReachEndsTooLate, r"no output depends on the last input that its reach gives, such as", ()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "sentence", "leave_out"),
    SENTENCES,
    ids=[f"{model.__name__}-{len(leave_out)}" for model, _, leave_out in SENTENCES],
)
def test_what_is_broken_is_found_and_said(broken, sentence, leave_out):
    with pytest.raises(ContractError, match=sentence) as caught:
        check_model(broken(), examples=8, leave_out=leave_out)
    assert str(caught.value).startswith("window (audio to ")


def test_what_a_model_raises_itself_comes_with_a_note():
    class Raises(Window):
        def step(self, x, state, *, end=False):
            raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer") as caught:
        check_model(Raises())
    assert caught.value.__notes__ == ["window (audio to features): while checking steps"]


def test_the_model_itself_stays_as_it_was():
    model = Window()
    report = check_model(model, dtype=torch.float32, examples=1, leave_out=["lanes"])
    assert (report.dtype, model.like.dtype) == ("float32", torch.float64)
    assert report.skipped["lanes"] == "left out"
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_signal_of_ones_own():
    """Digital silence finds nothing wrong with a model whose gain is never heard."""
    seen = []

    def silence(model, items, *, batch=1, seed=0):
        seen.append(items)
        return torch.zeros_like(random_signal(model, items, batch=batch, seed=seed))

    check_model(RemembersOnItself(), signal=silence, examples=1, leave_out=["reach"])
    assert len(seen) > 20


def test_unknown_checks_and_the_tree_of_errors():
    with pytest.raises(UsageError, match="no checks: sums; wanted steps, state"):
        check_model(Window(), leave_out=["sums", "cuts"])
    assert issubclass(ContractError, StreamencError) and issubclass(ContractError, AssertionError)


class Doubles(Transform):
    closed = 0

    def open(self, info: StreamInfo) -> StreamInfo:
        self.kept: list[Frame] = []
        return info

    def push(self, frame: Frame) -> Iterable[Frame]:
        if frame.seq == 7:
            raise RuntimeError("seven")
        self.kept.append(frame)
        return [frame.with_(data=2 * frame.data)]

    def flush(self) -> Iterable[Frame]:
        return self.kept[-1:]

    def close(self) -> None:
        self.closed += 1


class DoublesAsync(AsyncTransform):
    def __init__(self) -> None:
        self.inner = Doubles()

    async def open(self, info: StreamInfo) -> StreamInfo:
        return self.inner.open(info)

    async def push(self, frame: Frame) -> Iterable[Frame]:
        return self.inner.push(frame)

    async def flush(self) -> Iterable[Frame]:
        return self.inner.flush()

    async def aclose(self) -> None:
        self.inner.close()

    @property
    def closed(self) -> int:
        return self.inner.closed


@pytest.mark.parametrize("kind", [Doubles, DoublesAsync])
def test_drive_opens_pushes_flushes_and_closes(kind):
    node, data = kind(), noise(50)
    out = drive(node, audio_info(8000), sound(data, 20))
    assert [frame.seq for frame in out] == [0, 1, 2, 2] and node.closed == 1
    assert np.array_equal(out[1].data, 2 * data[:, 20:40])
    with pytest.raises(RuntimeError, match="seven"):
        drive(node, audio_info(8000), sound(data, 20, seq=6))
    assert node.closed == 2
