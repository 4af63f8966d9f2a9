"""Lanes: streams that join, idle and leave compute what they would alone."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.lanes import WORTH_A_RUN, Lanes
from streamenc.errors import UsageError
from streamenc.layers.quantize import ResidualVQ
from streamenc.models.model import Model
from streamenc.models.signal import Scaled, Signal
from streamenc.stream import Stream
from tests.support import zoo
from tests.support.compare import assert_close, assert_codes_equal, poisoned_memory
from tests.support.profile import FULL

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

# One of each kind of state and of signal; tests/test_equality.py has the others, in latents.
KINDS = ("mimi", "encodec-48k", "cosmos-codes", "mel", "wav2vec2", "vit")
SOME = [case for case in zoo.CASES if FULL or case[0] in KINDS]
cases = pytest.mark.parametrize(("name", "side"), SOME, ids=["-".join(case) for case in SOME])


def check(ours: Signal, theirs: Signal) -> None:
    if isinstance(ours, Scaled):
        assert torch.equal(ours.codes, theirs.codes)
        assert_close(ours.scale, theirs.scale, 1e-10)
    elif ours.is_floating_point():
        assert_close(ours, theirs, 1e-10)
    else:
        assert torch.equal(ours, theirs)


class Pair:
    """A stream for the lanes, and the same by itself, which it has to equal step by step."""

    def __init__(self, model: Model, seed: int) -> None:
        # Past Mimi's attention window of 10 frames and back to its start again.
        steps = 4 if model.spec.hop > 500 or model.spec.hop_out > 500 else 30
        self.items = model.spec.lead + steps * model.spec.hop + 5
        self.signal = zoo.signal(model, self.items, seed=seed)
        self.ours, self.solo, self.at = Stream(model), Stream(model), 0

    @property
    def left(self) -> int:
        return self.items - self.at

    def take(self, items: int) -> Signal:
        """Gives the next items to both streams; returns what the solo one makes of them."""
        start, self.at = self.at, self.at + items
        chunk = zoo.cut(self.signal, start, self.at)
        with torch.inference_mode():
            self.ours.take(chunk)
        return self.solo.push(chunk)

    def start(self) -> None:
        """The first step, which runs alone."""
        expected = self.take(self.ours.model.spec.lead)
        with torch.inference_mode():
            check(self.ours.step(None), expected)


@cases
def test_any_schedule_equals_solo_streams(name, side):
    model = zoo.model(name, side)
    hop, chance = model.spec.hop, random.Random(name + side)
    lanes, pairs, joined, outside = Lanes(model, 3), [], 0, []
    most = 6 if FULL else 4
    while joined < most or pairs or outside:
        if joined < most and len(lanes) < 3 and chance.random() < 0.4:
            pair = Pair(model, seed=joined)
            pair.start()
            lanes.join(pair.ours)
            pairs.append(pair)
            joined += 1
        if outside and len(lanes) < 3 and chance.random() < 0.5:
            pairs.append(outside.pop())
            lanes.join(pairs[-1].ours)
        ready = [p for p in pairs if p.left >= hop and chance.random() < 0.7]
        expected = {pair.ours: pair.take(hop) for pair in ready}
        outputs = lanes.step(dict.fromkeys(expected)) if expected else {}
        assert outputs.keys() == expected.keys()
        for stream, y in outputs.items():
            check(y, expected[stream])
        done = [p for p in pairs if p.left < hop or chance.random() < 0.05]
        if done:
            pair = chance.choice(done)
            pairs.remove(pair)
            if pair.left < hop:
                pair.take(pair.left)
                check(pair.ours.flush(), pair.solo.flush())
                lanes.leave(pair.ours)
                assert pair.ours.state is None
            else:  # it goes on by itself, or in another lane
                lanes.leave(pair.ours)
                expected = pair.take(hop)
                with torch.inference_mode():
                    check(pair.ours.step(None), expected)
                outside.append(pair)
        assert len(lanes) == len(pairs)
        assert all((p.ours in lanes and lanes.holds(p.ours)) for p in pairs)
        for pair in pairs:
            assert (pair.ours.emitted, pair.ours.pushed) == (pair.solo.emitted, pair.solo.pushed)


@cases
def test_an_idle_lane_is_untouched(name, side):
    model = zoo.model(name, side)
    lanes, idle, busy = Lanes(model, 2), Pair(model, 1), Pair(model, 2)
    for pair in (idle, busy):
        pair.start()
    before = states.clone(idle.ours.state)
    lanes.join(idle.ours)
    lanes.join(busy.ours)
    for _ in range(3):
        # Both lanes are computed, as for a batch whose first stream is late.
        lanes._ranges = lambda active: iter([range(2)])
        expected = busy.take(model.spec.hop)
        check(lanes.step({busy.ours: None})[busy.ours], expected)
    assert lanes.ran == 6
    lanes.leave(idle.ours)
    for old, new in zip(states.leaves(before), states.leaves(idle.ours.state), strict=True):
        # A ring has been written ahead, into slots that its position does not show.
        if old.ndim < 4:
            assert torch.equal(old, new)
    expected = idle.take(model.spec.hop)
    with torch.inference_mode():
        y = idle.ours.step(None)
    check(y, expected)
    if isinstance(y, torch.Tensor):
        assert torch.equal(y, expected)


def test_full_lanes_refuse_another_stream():
    model = zoo.model("mimi", "encoder")
    lanes, pairs = Lanes(model, 2), [Pair(model, seed) for seed in range(3)]
    for pair in pairs:
        pair.start()
    for pair in pairs[:2]:
        lanes.join(pair.ours)
    with pytest.raises(UsageError, match="all 2 lanes"):
        lanes.join(pairs[2].ours)
    assert pairs[2].ours not in lanes
    lanes.leave(pairs[0].ours)
    lanes.join(pairs[2].ours)
    for pair in pairs[1:]:
        expected = pair.take(model.spec.hop)
        check(lanes.step({pair.ours: None})[pair.ours], expected)


def test_snapshot_end_and_restore_of_a_stream_in_its_lane():
    model = zoo.model("mimi", "encoder")
    lanes, (one, other, last) = Lanes(model, 3), (Pair(model, seed) for seed in range(3))
    for pair in (one, other, last):
        pair.start()
        lanes.join(pair.ours)
    blob = one.ours.snapshot()
    check(one.ours.flush(), one.solo.flush())
    assert not lanes.holds(one.ours)
    lanes.leave(one.ours)  # the last one moves into its lane
    other.ours.restore(blob)
    assert not lanes.holds(other.ours)
    lanes.leave(other.ours)
    other.solo.restore(blob)
    for pair in (other, last):
        expected = pair.take(model.spec.hop)
        if pair.ours not in lanes:
            lanes.join(pair.ours)
        check(lanes.step({pair.ours: None})[pair.ours], expected)


def test_each_gets_as_many_codebooks_as_it_wants():
    model = zoo.model("mimi", "encoder")
    lanes, pairs = Lanes(model, 4), [Pair(model, seed) for seed in range(4)]
    for pair in pairs:
        pair.start()
        lanes.join(pair.ours)
    for counts in ([1, 4, 2, 3], [None, 1, None, 2], [3, 3, 3, 3]):
        expected = [pair.take(model.spec.hop) for pair in pairs]
        outputs = lanes.step({p.ours: n for p, n in zip(pairs, counts, strict=True)})
        for pair, count, whole in zip(pairs, counts, expected, strict=True):
            assert torch.equal(outputs[pair.ours], whole[:, :count])


def test_outputs_are_nobody_elses_memory():
    model = zoo.model("mimi", "decoder")
    lanes, pairs = Lanes(model, 2), [Pair(model, seed) for seed in range(2)]
    for pair in pairs:
        pair.start()
        lanes.join(pair.ours)
    expected = [pair.take(1) for pair in pairs]
    first, second = lanes.step({pair.ours: None for pair in pairs}).values()
    with torch.inference_mode():
        first.fill_(99)
    check(second, expected[1])
    sizes = [y.untyped_storage().nbytes() for y in (first, second)]
    assert sizes == [y.nelement() * y.element_size() for y in (first, second)]


def in_a_batch(model: Model, x: Signal, lanes_wanted: list[int], lane: int, seed: int) -> Tensor:
    """What `model` makes of `x` in a lane, beside noise in as many lanes as each step is to have.

    x  Of one first step and as many hops as `lanes_wanted` is long.
    """
    lead, hop = model.spec.lead, model.spec.hop
    items = lead + len(lanes_wanted) * hop
    signals = [
        x if i == lane else zoo.signal(model, items, seed=100 * seed + i)
        for i in range(max(lanes_wanted))
    ]
    lanes, streams = Lanes(model, len(signals)), [Stream(model) for _ in signals]
    outputs = []
    with torch.inference_mode():
        for stream, signal in zip(streams, signals, strict=True):
            stream.take(zoo.cut(signal, 0, lead))
            outputs.append(stream.step(None))
            lanes.join(stream)
        outputs = outputs[lane : lane + 1]
        for step, count in enumerate(lanes_wanted):
            start = lead + step * hop
            for stream, signal in zip(streams[:count], signals, strict=False):
                stream.take(zoo.cut(signal, start, start + hop))
            outputs.append(lanes.step(dict.fromkeys(streams[:count]))[streams[lane]])
    return torch.cat(outputs, dim=-1)


FLOAT32 = pytest.mark.parametrize(
    ("name", "side"), [(n, s) for n in ("mimi", "nano", "encodec") for s in ("encoder", "decoder")]
)


@FLOAT32
def test_neighbours_change_not_even_the_last_bit(name, side):
    model = zoo.raw(zoo.model(name, side, torch.float32))
    x = zoo.signal(model, model.spec.lead + 12 * model.spec.hop)
    for lane in (0, 2, 4):
        one, other = (in_a_batch(model, x, [5] * 12, lane, seed) for seed in (1, 2))
        assert torch.equal(one, other)


@FLOAT32
def test_another_number_of_lanes_changes_rounding_alone(name, side):
    """From step to step, as live sessions have it; codes up to near ties."""
    model = zoo.model(name, side, torch.float32)
    chance = random.Random(name)
    counts = [chance.randint(1, 7) for _ in range(400 if FULL else 100)]
    x = zoo.signal(model, model.spec.lead + len(counts) * model.spec.hop, seed=3)
    latents = Stream(zoo.raw(model)).push(x)
    ours = in_a_batch(zoo.raw(model), x, counts, 0, seed=1)
    assert_close(ours, latents, 2 * zoo.row(name).float32_error)  # for both of them are rounded
    if side == "encoder":
        codes, alone = in_a_batch(model, x, counts, 0, seed=1), Stream(model).push(x)
        quantizers = [m for m in model.modules() if isinstance(m, ResidualVQ)]
        assert_codes_equal(codes, alone, latents, quantizers)


@pytest.mark.parametrize(
    ("active", "wanted"),
    [
        ([3], [(3, 4)]),
        ([0, 1, 2, 3, 4, 5, 6], [(0, 7)]),
        ([0, 1 + WORTH_A_RUN], [(0, 2 + WORTH_A_RUN)]),
        ([0, 2 + WORTH_A_RUN], [(0, 1), (2 + WORTH_A_RUN, 3 + WORTH_A_RUN)]),
        ([1, 2, 20, 22, 60], [(1, 3), (20, 23), (60, 61)]),
    ],
)
def test_what_is_computed_on_a_cpu(active, wanted):
    lanes = Lanes(zoo.model("mimi", "encoder"), 64)
    assert [(r.start, r.stop) for r in lanes._ranges(active)] == wanted


def test_memory_of_a_lane_is_that_of_a_stream():
    """Counted bytes: what the lanes reserve, over what their streams would hold by themselves."""
    model = zoo.model("mimi", "encoder", torch.float32)
    lanes, pairs = Lanes(model, 8), [Pair(model, seed) for seed in range(8)]
    for pair in pairs:
        pair.start()
    alone = sum(states.nbytes(pair.ours.state) for pair in pairs)
    for pair in pairs:
        lanes.join(pair.ours)
    # The streams' own states are views by now.
    pool = {leaf.untyped_storage().data_ptr() for leaf in states.leaves(lanes._pool)}
    for pair in pairs:
        assert {x.untyped_storage().data_ptr() for x in states.leaves(pair.ours.state)} == pool
    assert states.nbytes(lanes._pool) == alone
    for pair in pairs:
        lanes.leave(pair.ours)
    assert states.nbytes(lanes._pool) == 0


RESIDENT = """
import os, torch
from pathlib import Path
from types import SimpleNamespace
from streamenc import state as states
from streamenc.engine.lanes import Lanes
from streamenc.stream import Stream

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def join(lanes, streams):
    for stream in streams:  # of about the shape of Mimi's
        rings = tuple(torch.ones(1, 8, 251, 64) for _ in range(8))
        stream.state = (torch.ones(1, dtype=torch.int64), rings, torch.ones(1, 512, 3))
        lanes.join(stream)

model = SimpleNamespace(like=torch.zeros(1), ready=lambda hops: None)
few = [Stream(model) for _ in range(2)]
join(Lanes(model, 2), few)  # what torch loads with its first calls is not counted
# Enough of them that a state or two that malloc keeps does not count.
lanes, streams = Lanes(model, 512), [Stream(model) for _ in range(32)]
before = resident()
join(lanes, streams)
print((resident() - before) / (states.nbytes(lanes._pool) / 16))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lanes_without_streams_take_no_memory():
    """A sixteenth of the lanes is used, and no more than a fifth beyond that is resident."""
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, timeout=100, check=True
    )
    print(f"resident memory over that of the streams: {float(done.stdout):.3f}")
    assert float(done.stdout) < 1.2
