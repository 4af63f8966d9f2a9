"""Forged snapshots with a right checksum: refused, and no step of a neighbour fails."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamenc import state as states
from streamenc.engine.engine import Engine
from streamenc.errors import InputError, SnapshotError
from streamenc.models import snapshot
from streamenc.models.model import Model
from streamenc.models.signal import items
from streamenc.state import State
from streamenc.stream import Stream
from streamenc.testing.signals import joined
from tests.support import answers, zoo
from tests.support.profile import FULL

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
    "hops without end": on_header(hops=2**62),
    "no hops": on_header(hops=0),
    "pushed before it began": on_header(pushed=-5),
    "pushed more": on_header(pushed=10**6),
    "pushed as text": on_header(pushed="many"),
    "pushed as true": on_header(pushed=True),
    "emitted more": on_header(emitted=10**6),
    "a shape without axes": on_header(shape=[]),
    "a shape of many channels": on_header(shape=[64]),
    "a shape of images": on_header(shape=[3, 10**5, 10**5]),
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


def mutations(rng: random.Random, blob: bytes) -> Iterator[bytes]:
    """Forged snapshots without end, each with a right checksum."""
    while True:
        tree, header = states.from_bytes(blob)
        header = json.loads(json.dumps(header))
        for _ in range(rng.choice((1, 1, 2))):
            tree, header = _mutated(rng, tree, header)
        yield states.to_bytes(tree, header)


def _mutated(
    rng: random.Random, tree: State, header: dict[str, Any]
) -> tuple[State, dict[str, Any]]:
    assert isinstance(tree, tuple)
    count = len(list(states.leaves(tree[1])))
    kind = rng.randrange(7)
    if kind == 0:
        key = rng.choice(("pushed", "emitted", "hops", "codebooks"))
        value = rng.choice((0, 1, 2, 3, 17, 10**5, 2**31, 2**53, 2**62, -1, None))
        return on_header(**{key: value})(tree, header)
    if kind == 1:
        return on_state(lambda t: t.to(rng.choice(ODD_TYPES)), rng.randrange(count))(tree, header)
    if kind == 2:
        axis, more = rng.random(), rng.random() < 0.5

        def resized(t: Tensor) -> Tensor:
            dim = int(axis * t.ndim)
            return torch.cat([t, t], dim) if more else t.narrow(dim, 0, t.shape[dim] // 2)

        return on_state(resized, rng.randrange(count))(tree, header)
    if kind == 3:
        factor = rng.choice((-1.0, 1e30, float("nan"), float("inf"), 2.0**40))
        return on_state(lambda t: (t * factor).to(t.dtype), rng.randrange(count))(tree, header)
    if kind == 4 and isinstance(tree[0], Tensor):
        return on_waiting(lambda x: x.repeat(1, rng.choice((1, 2)), rng.choice((1, 3))))(
            tree, header
        )
    if kind == 5:
        return on_header(shape=rng.choice(([1], [2], [], [1, 1], [10**6])))(tree, header)
    return on_state(lambda t: t.reshape(-1)[:1], rng.randrange(count))(tree, header)


@pytest.mark.parametrize("name", ["mimi", "nano", "encodec", "wav2vec2"])
def test_neighbours_of_a_forger_never_notice(name: str) -> None:
    """Two sessions, beside one that restores forged snapshots: equal to the bit to those alone."""
    model = zoo.model(name, "encoder", torch.float32)
    spec, rng = model.spec, random.Random(name)
    rounds = 250 if FULL else 40
    x = zoo.signal(model, spec.lead + 3 * rounds * spec.hop, seed=1)
    source = taken(model, spec.lead + 5 * spec.hop + 1)
    forgeries = mutations(rng, source.snapshot())
    solo = joined([Stream(model).push(x)])

    async def main() -> None:
        with Engine() as engine:
            neighbours = [engine.open(model) for _ in range(2)]
            first = [await s.step(zoo.cut(x, 0, spec.lead)) for s in neighbours]
            parts: list[list[Any]] = [[y] for y in first]
            for number in range(rounds):
                forger = engine.open(model)
                try:
                    await forger.restore(next(forgeries))
                except (SnapshotError, InputError):
                    pass
                for hop in range(3):
                    start = spec.lead + (3 * number + hop) * spec.hop
                    piece = zoo.cut(x, start, start + spec.hop)
                    told = await asyncio.gather(
                        *(s.step(piece) for s in (*neighbours, forger)), return_exceptions=True
                    )
                    for part, y in zip(parts, told, strict=False):
                        assert isinstance(y, np.ndarray), y
                        part.append(y)
                forger.close()
            for part in parts:
                got = answers.joined(part)
                assert items(got) == items(solo)
                torch.testing.assert_close(got, solo[..., : items(got)], rtol=1e-4, atol=1e-5)

    asyncio.run(main())
