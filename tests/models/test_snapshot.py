"""Forged snapshots with a right checksum: refused, at no cost, and the stream stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.errors import InputError, SnapshotError
from streamenc.models import snapshot
from streamenc.models.model import Model
from streamenc.state import State
from streamenc.stream import Stream
from streamenc.testing.signals import joined
from tests.support import zoo

ODD_TYPES = [
    torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool,
    torch.complex64,
]  # fmt: skip
Forgery = Callable[[State, dict[str, Any]], tuple[State, dict[str, Any]]]


def taken(model: Model, count: int, hops: int = 1) -> Stream:
    stream = Stream(model, hops=hops)
    stream.push(zoo.signal(model, count))
    return stream


def forged(stream: Stream, forgery: Forgery) -> bytes:
    tree, header = states.from_bytes(stream.snapshot())
    return states.to_bytes(*forgery(tree, header))


def on_state(change: Callable[[Tensor], Tensor], only: int | None = None) -> Forgery:
    """Changes the tensors of the state, or the one of that number."""

    def forge(tree: State, header: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        assert isinstance(tree, tuple)
        numbers = iter(range(10_000))

        def one(leaf: Tensor) -> Tensor:
            return change(leaf) if only in (None, next(numbers)) else leaf

        return (tree[0], states.map_state(one, tree[1])), header

    return forge


def on_waiting(change: Callable[[Tensor], Tensor]) -> Forgery:
    def forge(tree: State, header: dict[str, Any]) -> tuple[State, dict[str, Any]]:
        assert isinstance(tree, tuple) and isinstance(tree[0], Tensor)
        return (change(tree[0]), tree[1]), header

    return forge


def on_header(**changes: Any) -> Forgery:
    return lambda tree, header: (tree, {**header, **changes})


def spliced(tree: State, header: dict[str, Any]) -> tuple[State, dict[str, Any]]:
    assert isinstance(tree, tuple)
    return (tree[0], next(states.leaves(tree[1]))), header


def deep(levels: int) -> list[Any]:
    return [deep(levels - 1)] if levels else []


FORGERIES: dict[str, Forgery] = {
    "a column short": on_state(lambda leaf: leaf[..., :-1] if leaf.ndim > 1 else leaf),
    "a column more": on_state(lambda leaf: torch.cat([leaf, leaf[..., :1]], dim=-1)),
    "two lanes": on_state(lambda leaf: torch.cat([leaf, leaf])),
    "no lane": on_state(lambda leaf: leaf[:0]),
    "one tensor": spliced,
    "no state": lambda tree, header: ((tree[0], None), header),  # type: ignore[index]
    "a deeper tree": lambda tree, header: ((tree[0], (tree[1],)), header),  # type: ignore[index]
    **{
        f"state of {dtype}": on_state(lambda leaf, dtype=dtype: leaf.to(dtype))  # type: ignore[misc]
        for dtype in ODD_TYPES
    },
    "a position below 0": on_state(lambda leaf: leaf if leaf.is_floating_point() else leaf - 1000),
    "a position far ahead": on_state(
        lambda leaf: leaf if leaf.is_floating_point() else leaf + 2**60
    ),
    "waiting of two channels": on_waiting(lambda x: torch.cat([x, x], dim=1)),
    "waiting of two lanes": on_waiting(lambda x: torch.cat([x, x])),
    "waiting in float64": on_waiting(Tensor.double),
    "waiting for longer than a step": on_waiting(lambda x: x.repeat(1, 1, 50)),
    "waiting that is not finite": on_waiting(lambda x: x / 0),
    "waiting that is a number": on_waiting(lambda x: x[0, 0, 0]),
    "a number that is none": on_state(lambda leaf: leaf / 0 if leaf.is_floating_point() else leaf),
    "hops without end": on_header(hops=2**62),
    "hops of an hour": on_header(hops=10**5),
    "no hops": on_header(hops=0),
    "pushed before it began": on_header(pushed=-5),
    "pushed more": on_header(pushed=10**6),
    "pushed as text": on_header(pushed="many"),
    "pushed as true": on_header(pushed=True),
    "emitted more": on_header(emitted=10**6),
    "a shape without axes": on_header(shape=[]),
    "a shape of many channels": on_header(shape=[64]),
    "a shape of very many channels": on_header(shape=[10**7]),
    "a shape of an image": on_header(shape=[3, 1024, 1024]),
    "a shape of images": on_header(shape=[3, 10**5, 10**5]),
    "a shape without end": on_header(shape=[2**53] * 40_000),
    "a shape in the deep": on_header(shape=deep(300)),
    "a shape of text": on_header(shape="wide"),
    "codebooks of text": on_header(codebooks="all"),
    "codebooks that there are not": on_header(codebooks=10**9),
}


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (name, what)
        for name in ("mimi", "nano")
        for what in FORGERIES
        if name == "mimi" or "position" not in what  # nano counts nothing
    ],
)
def test_a_forged_snapshot_is_refused(name: str, what: str) -> None:
    model = zoo.model(name, "encoder", torch.float32)
    source = taken(model, model.spec.lead + 10 * model.spec.hop + 5)
    blob = forged(source, FORGERIES[what])
    stream, reference = taken(model, 100), taken(model, 100)
    with pytest.raises((SnapshotError, InputError)):
        stream.restore(blob)
    # It stands as it stood before.
    rest = zoo.signal(model, 200, seed=3)
    assert torch.equal(
        joined([stream.push(rest), stream.flush()]),
        joined([reference.push(rest), reference.flush()]),
    )


def test_a_snapshot_may_not_be_larger_than_the_stream_that_it_is_of() -> None:
    model = zoo.model("mimi", "encoder", torch.float32)
    blob = forged(taken(model, 500), on_waiting(lambda x: x.repeat(1, 1, 10**6)))
    with pytest.raises(SnapshotError, match=rf"{len(blob)} bytes; one of this stream has at most"):
        Stream(model).restore(blob)


@pytest.mark.parametrize(("name", "side"), zoo.CASES, ids=["-".join(case) for case in zoo.CASES])
def test_what_a_stream_has_left_is_taken_back(name: str, side: str) -> None:
    """Where no stream of this model went before, too; at every place of a step."""
    model = zoo.model(name, side, torch.float32)
    spec = model.spec
    for hops, count in ((1, 0), (1, 1), (1, spec.lead), (2, spec.lead + 3 * spec.hop + 1)):
        stream = taken(model, count, hops)
        blob = stream.snapshot()
        snapshot._forms.pop(model, None)
        heir = Stream(model)
        heir.restore(blob)
        (tree, header), (left, told) = map(states.from_bytes, (heir.snapshot(), blob))
        assert header == told and states.form(tree) == states.form(left)
        pairs = zip(states.leaves(tree), states.leaves(left), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def test_a_header_without_end_is_not_even_read() -> None:
    header = b'{"__metadata__": {"streamenc_snapshot": "2"}, "x": [' + b"[], " * 10**6 + b"[]]}"
    model = zoo.model("mimi", "encoder", torch.float32)
    with pytest.raises(SnapshotError, match=f"a header of {len(header)} bytes"):
        Stream(model).restore(len(header).to_bytes(8, "little") + header)


def test_steps_as_long_as_those_of_the_stream_itself_are_taken() -> None:
    model = zoo.model("nano", "encoder", torch.float32)
    hops = 2 * 60 * int(model.spec.input.rate) // model.spec.hop
    blob = taken(model, 100, hops).snapshot()
    Stream(model, hops=hops).restore(blob)
    with pytest.raises(SnapshotError, match=rf"steps of {hops} hops; .* open the stream with"):
        Stream(model).restore(blob)


# Whatever is remembered of images: nothing, rings of attention, what convolutions look back on.
OF_IMAGES = [
    (name, side)
    for name, side in zoo.CASES
    if name in ("cosmos", "cosmos-window", "cosmos-codes", "wan", "wan-2.2", "ltx", "ltx-0.9.5",
                "taesd", "dcae", "vqgan", "vit-patches", "resnet-grid")
]  # fmt: skip


@pytest.mark.parametrize(("name", "side"), OF_IMAGES, ids=["-".join(case) for case in OF_IMAGES])
def test_what_large_images_leave_is_known_from_small_ones(
    name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zoo.model(name, side, torch.float32)
    port = model.spec.input
    unit = 1 if port.image is None else port.image.unit
    shape = (model.before(zoo.signal(model, 1)).shape[1], 4 * unit, 7 * unit)
    with torch.inference_mode():
        x = model.like.new_zeros(1, shape[0], model.spec.lead, *shape[1:])
        _, state = model.step(x, None)
    snapshot._forms.pop(model, None)
    largest = 3 * unit
    step = type(model).step

    def small(self: Model, x: Tensor, *rest: Any, **more: Any) -> Any:
        assert max(x.shape[3:]) <= largest
        return step(self, x, *rest, **more)

    monkeypatch.setattr(type(model), "step", small)
    assert snapshot._form(model, shape) == states.form(state)
