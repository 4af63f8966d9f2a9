"""Lanes by index: streams that join, idle and leave compute what they would alone."""

from __future__ import annotations

import random
from importlib import import_module
from unittest import mock

import pytest
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.indexed import IndexedLanes
from streamenc.engine.pages import Pages
from streamenc.errors import UsageError
from streamenc.state import Paged
from streamenc.stream import Stream
from tests.engine.test_lanes import KINDS, Pair, check
from tests.support import zoo
from tests.support.compare import assert_close, poisoned_memory
from tests.support.interpreter import needs_triton
from tests.support.profile import FULL

pytestmark = pytest.mark.usefixtures("poisoned_memory")
__all__ = ["poisoned_memory"]

# Those with rings that are read where they lie, and one of each kind of state and of signal.
PAGED = ("mimi", "moss", "qwen3-tts", "voxtral")
SOME = [case for case in zoo.CASES if FULL or case[0] in (*KINDS, *PAGED)]
cases = pytest.mark.parametrize(("name", "side"), SOME, ids=["-".join(case) for case in SOME])


@cases
def test_any_ready_streams_equal_lone_ones(name, side):
    """Those that step are any of those that are in, in any order; some idle, some leave."""
    model = zoo.model(name, side)
    hop, chance = model.spec.hop, random.Random(name + side)
    lanes, pairs, joined = IndexedLanes(model, 3), [], 0
    most = 6 if FULL else 4
    while joined < most or pairs:
        if joined < most and len(lanes) < 3 and chance.random() < 0.5:
            pair = Pair(model, seed=joined)
            pair.start()
            if pair.ours.state is None:
                pytest.skip("it remembers nothing, so that no lane is of use")
            lanes.join(pair.ours)
            pairs.append(pair)
            joined += 1
        ready = [p for p in pairs if p.left >= hop and chance.random() < 0.7]
        chance.shuffle(ready)
        expected = {pair.ours: pair.take(hop) for pair in ready}
        outputs = lanes.step(dict.fromkeys(expected)) if expected else {}
        assert outputs.keys() == expected.keys()
        for stream, y in outputs.items():
            check(y, expected[stream])
        for pair in [p for p in pairs if p.left < hop]:
            pairs.remove(pair)
            pair.take(pair.left)
            check(pair.ours.flush(), pair.solo.flush())
            lanes.leave(pair.ours)
            assert pair.ours.state is None and pair.ours not in lanes
        assert all(lanes.holds(pair.ours) for pair in pairs)


def started(name: str, side: str, capacity: int, count: int) -> tuple[IndexedLanes, list[Pair]]:
    """Lanes with streams past their first step."""
    model = zoo.model(name, side)
    lanes, pairs = IndexedLanes(model, capacity), [Pair(model, seed) for seed in range(count)]
    for pair in pairs:
        pair.start()
        lanes.join(pair.ours)
    return lanes, pairs


def copies(pages: Pages, lanes: range) -> list[states.State]:
    return [states.clone(pages.lane(lane)) for lane in lanes]


def assert_same(ours: states.State, theirs: states.State) -> None:
    for a, b in zip(states.leaves(ours), states.leaves(theirs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["mimi", "encodec", "nano", "wav2vec2"])
def test_idle_lanes_stay_to_the_bit_and_the_rest_is_not_computed(name):
    """Rings too: nothing is even written ahead."""
    lanes, pairs = started(name, "encoder", 6, 5)
    before = copies(lanes._pages, range(6))
    busy = [pairs[3], pairs[0], pairs[4]]
    for _ in range(2):
        expected = {pair.ours: pair.take(lanes.model.spec.hop) for pair in busy}
        for stream, y in lanes.step(dict.fromkeys(expected)).items():
            check(y, expected[stream])
    assert lanes.ran == 8  # a bucket of four, twice
    for lane in (1, 2, 5):
        assert_same(before[lane], lanes._pages.lane(lane))
    # The lane that fills buckets up stays in mid-stream: it comes to no position that has no end.
    spare = lanes._pages.lane(lanes._pages.spare)
    paged = {id(leaf) for leaf in lanes.model.pages(spare)}
    first = Pair(lanes.model, 0)
    first.start()
    for kept, fresh in zip(states.leaves(spare), states.leaves(first.ours.state), strict=True):
        assert id(kept) in paged or torch.equal(kept, fresh)


def test_nobody_moves_when_one_leaves():
    lanes, pairs = started("mimi", "encoder", 4, 4)
    there = [states.leaves(pair.ours.state) for pair in pairs]
    addresses = [[leaf.data_ptr() for leaf in leaves] for leaves in there]
    lanes.leave(pairs[1].ours)
    assert not {x.data_ptr() for x in states.leaves(pairs[1].ours.state)} & {*sum(addresses, [])}
    newcomer = Pair(lanes.model, 9)
    newcomer.start()
    lanes.join(newcomer.ours)
    pairs[1] = newcomer  # in the lane that was left
    for pair, was in zip(pairs, addresses, strict=True):
        assert [leaf.data_ptr() for leaf in states.leaves(pair.ours.state)] == was
    with pytest.raises(UsageError, match="all 4 lanes"):
        lanes.join(Pair(lanes.model, 10).ours)
    for pair in pairs:
        lanes.leave(pair.ours)
    lanes.release()
    assert lanes._pages is None


@pytest.mark.parametrize(
    ("name", "side"), [case for case in zoo.CASES if case[0] in PAGED], ids="-".join
)
def test_rings_are_read_and_written_where_they_lie(name, side):
    """What a model says that it takes as pages it gives back as it came, in mid-stream."""
    model = zoo.model(name, side)
    stream = Pair(model, 1)
    stream.start()
    paged = {id(leaf) for leaf in model.pages(stream.ours.state)}
    given: list[Paged] = []

    def as_pages(state: states.State) -> states.State:
        if isinstance(state, Tensor):
            if id(state) not in paged:
                return state
            given.append(Paged(torch.cat((state, state)), torch.tensor([1])))
            return given[-1]
        return None if state is None else tuple(as_pages(part) for part in state)

    def pages_in(state: states.State) -> list[Paged]:
        if isinstance(state, Paged):
            return [state]
        return [p for part in state for p in pages_in(part)] if isinstance(state, tuple) else []

    with torch.inference_mode():
        x = model.before(zoo.signal(model, model.spec.hop))
        _, after = model.step(x, as_pages(stream.ours.state))
    assert given and [id(page) for page in pages_in(after)] == [id(page) for page in given]
    for page in given:
        assert not torch.equal(page.pool[0], page.pool[1])  # which alone was written


def test_a_batch_is_filled_up_with_the_spare_lane():
    lanes, _ = started("nano", "encoder", 7, 1)
    assert lanes._pages.places([5, 0, 2], 4).tolist() == [[5, 0, 2, 7], [5, 0, 2, 8]]


def by_kernel() -> tuple[Tensor, list[Tensor], Tensor, list[Tensor]]:
    """Steps of some of several lanes with the Triton kernel, and with the definition: outputs, and
    what the pages hold in the end. In the interpreter's process."""
    model = zoo.raw(zoo.model("mimi", "encoder", torch.float32))
    op = import_module("streamenc_kernels.ring_attention")
    found = []
    for kernel in (True, False):
        with mock.patch.object(
            op, "takes_triton", lambda op, device, chosen, cannot, on=kernel: on and not cannot()
        ):
            streams = [Stream(model) for _ in range(3)]
            lanes, outputs = IndexedLanes(model, 5), []
            with torch.inference_mode():
                for seed, stream in enumerate(streams):
                    x = zoo.signal(model, model.spec.lead + 3 * model.spec.hop, seed=seed)
                    stream.take(x)
                    stream.step(None)
                    lanes.join(stream)
            for ready in ([2, 0], [1, 2]):
                outputs += lanes.step({streams[i]: None for i in ready}).values()
        found += [torch.cat(outputs), [tensor.clone() for tensor in lanes._pages.tensors]]
    return tuple(found)


@needs_triton
def test_the_ring_kernel_by_index(interpreted):
    ours, our_pages, theirs, their_pages = interpreted(by_kernel)
    assert_close(ours, theirs, 1e-5)
    for a, b in zip(our_pages, their_pages, strict=True):
        # Not the last two, which nobody reads.
        assert_close(a[:-2], b[:-2], 1e-5) if a.is_floating_point() else None
