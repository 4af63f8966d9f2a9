"""Snapshots that were forged, beside good neighbours: whatever one is, these never notice.

A case is a recipe, as JSON: which model, in what its steps run, and how a snapshot that a stream of
it has left is changed. The checksum is made anew each time, so that it tells nothing.
"""

from __future__ import annotations

import asyncio
import json
import weakref
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

import torch
from safetensors.torch import save
from torch import Tensor

from streamenc import state as states
from streamenc.compiled.compiledmodel import CompiledModel
from streamenc.engine.engine import Engine
from streamenc.errors import StreamencError
from streamenc.models.model import Model
from streamenc.models.signal import Signal, cut
from streamenc.onnx.onnxmodel import OnnxModel
from streamenc.spec import StreamSpec
from streamenc.state import State
from streamenc.stream import Stream
from tests.campaign.target import mutated
from tests.support import zoo
from tests.support.answers import joined

MODELS = ("nano", "mimi", "encodec", "wav2vec2", "cosmos")
# In what their steps in mid-stream run. ONNX takes seconds to make: a recipe may ask for it.
RUNS = {"nano": ("torch", "compiled"), "mimi": ("torch", "compiled"), "wav2vec2": ("compiled",)}
STEPS = 7  # of the stream that was honest
HOPS = 3  # that all go on together
PIECES = 64  # of the neighbours' signal, over and over

COUNTS = (0, 1, 2, 3, 17, -1, 10**5, 2**31, 2**53 - 1, 2**53, 2**62, 2**64, 1.5, 1e308, None, True)
DTYPES = (
    "float64", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool", "complex64",
    "float8_e4m3fn",
)  # fmt: skip
NUMBERS = (float("nan"), float("inf"), -1.0, 1e-40, 1e30, 3e38, 2.0**40, 0.0)
SHAPES: tuple[Any, ...] = (
    [], [0], [1], [2], [10**6], [2**53], [1, 1], [3, 32, 32], [3, 4096, 2160], [3, 0, 8], [1] * 64,
    [2**53] * 2000, [-1], [True], ["1"], "1", None,
)  # fmt: skip
TEXTS = ("", "null", "[]", "{}", "1", "[" * 5000, "[" * 400 + "1" + "]" * 400, "{" * 5000, "NaN")

Change: TypeAlias = "list[Any]"


def runs_of(name: str) -> tuple[str, ...]:
    return RUNS.get(name, ("torch",))


@cache
def served(name: str, runs: str) -> Model:
    """A small model, whose steps run there."""
    if runs == "torch":
        return zoo.model(name, "encoder", torch.float32)
    model = zoo.codec.__wrapped__(name, torch.float32).encoder  # its weights are rounded in place
    return CompiledModel(model) if runs == "compiled" else OnnxModel(model)


def forged(blob: bytes, changes: list[Change], per_step: list[int]) -> bytes:
    """A snapshot with other contents and a right checksum.

    per_step  By how much each whole number of the state grows in a step.
    """
    tree, header = states.from_bytes(blob)
    assert isinstance(tree, tuple)
    waiting, state = tree
    texts: dict[str, str] = {}
    for kind, *how in changes:
        leaves = list(states.leaves(state))
        if kind == "header":
            header[how[0]] = how[1]
        elif kind == "text":
            texts[how[0]] = how[1]
        elif kind == "waiting":
            waiting = None if how[0] == "none" else _other(_or_one(waiting), *how)
        elif kind == "ahead" and len(leaves) == len(per_step):
            header["pushed"] += how[0] * how[1]
            header["emitted"] += how[0] * how[2]
            state = _replaced(state, [
                leaf if leaf.is_floating_point() else leaf + how[0] * more
                for leaf, more in zip(leaves, per_step, strict=True)
            ])  # fmt: skip
        elif kind == "leaf" and leaves:
            at = how[0] % len(leaves)
            leaves[at] = _other(leaves[at], *how[1:])
            state = _replaced(state, leaves)
        elif kind == "tree":
            state = _other_tree(state, how[0])
    tree = (waiting, state)
    tensors = {str(i): leaf.contiguous() for i, leaf in enumerate(states.leaves(tree))}
    metadata = {
        "streamenc_snapshot": str(states.SNAPSHOT_VERSION),
        "header": json.dumps(header),
        "tree": json.dumps(states._tree(tree)),
        **texts,
    }
    metadata["crc32"] = str(states._crc32(metadata, tensors))
    made = bytes(save(tensors, metadata))
    for kind, *how in changes:
        if kind == "bytes":
            made = mutated(made, Random(how[0]))
        elif kind == "behind":
            made += b"\0" * how[0]
    return made


def _or_one(waiting: State) -> Tensor:
    return waiting if isinstance(waiting, Tensor) else torch.zeros(1, 1, 1)


def _replaced(state: State, leaves: list[Tensor]) -> State:
    following = iter(leaves)
    return states.map_state(lambda _: next(following), state)


def _other(leaf: Tensor, how: str, what: Any = None) -> Tensor:
    if how == "dtype":
        return leaf.to(getattr(torch, what))
    if how == "half":
        dim = what % max(1, leaf.ndim)
        return leaf.narrow(dim, 0, leaf.shape[dim] // 2)
    if how == "twice":
        return torch.cat([leaf, leaf], dim=what % max(1, leaf.ndim))
    if how == "long":
        return leaf.repeat_interleave(what, dim=min(2, max(0, leaf.ndim - 1)))
    if how == "flat":
        return leaf.reshape(-1)[:what]
    if how == "deep":
        return leaf.reshape(*[1] * what, *leaf.shape)
    if how == "fill":
        return torch.full_like(leaf, what if leaf.is_floating_point() else 0)
    if how == "times":
        return (leaf.double() * what).to(leaf.dtype)
    if how == "count":
        return leaf if leaf.is_floating_point() else torch.full_like(leaf, what)
    assert how == "noise"
    noise = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(what))
    return noise.to(leaf.dtype)


def _other_tree(state: State, how: str) -> State:
    if how == "none":
        return None
    if how == "deeper":
        return (state,)
    if how == "one":
        return next(states.leaves(state), None)
    if how == "flat":
        return tuple(states.leaves(state))
    if how == "more":
        return (*(state if isinstance(state, tuple) else (state,)), torch.zeros(1, 3))
    if how == "many":
        return tuple(torch.zeros(1, 0) for _ in range(3000))
    assert how == "turned"
    return _replaced(state, list(states.leaves(state))[::-1])


class Crowd:
    """An engine with two neighbours, who go on through all cases, and a stream by itself that tells
    what they have to get."""

    def __init__(self, model: Model) -> None:
        self.model, spec = model, model.spec
        # A batch may sum in another order than a stream alone: codes are the same all the same.
        self.exact = spec.output.kind == "codes"
        self._engine = Engine(max_wait_ms=500)
        self._neighbours = [self._engine.open(model) for _ in range(2)]
        self._solo = Stream(model)
        self._x = zoo.signal(model, spec.lead + PIECES * spec.hop, seed=1)
        self._at = 0
        # With the crowd's end, neighbours who were never closed are no news.
        weakref.finalize(self, self._engine.close)
        honest = Stream(model)
        honest.push(zoo.signal(model, spec.lead + (STEPS - 1) * spec.hop + 1))
        before = [leaf.clone() for leaf in states.leaves(honest.state)]
        honest.push(zoo.signal(model, spec.hop))
        self.blob = honest.snapshot()
        self.per_step = [
            0 if old.is_floating_point() else int((new - old).max())
            for old, new in zip(before, states.leaves(honest.state), strict=True)
        ]
        asyncio.run(self._together([]))

    def has_room(self) -> bool:
        return self._solo.has_room((HOPS + 1) * self.model.spec.hop)

    def beside(self, blob: bytes) -> None:
        """Someone goes on from `blob` for some hops, beside the neighbours.

        Raises:
            AssertionError: a neighbour got something else than it would have alone.
            StreamencError: the snapshot was refused.
        """
        asyncio.run(self._beside(blob))

    async def _beside(self, blob: bytes) -> None:
        refusal: Exception | None = None
        with self._engine.open(self.model) as forger:
            try:
                await forger.restore(blob)
            except StreamencError as error:
                refusal = error
            for _ in range(HOPS):
                await self._together([forger])
            await asyncio.gather(forger.snapshot(), forger.flush())
        if refusal is not None:
            raise refusal

    async def _together(self, others: list[Any]) -> None:
        piece = self._next()
        wanted = self._solo.push(piece)
        told = await asyncio.gather(
            *(session.step(piece) for session in (*self._neighbours, *others)),
            return_exceptions=True,
        )
        for got in told[: len(self._neighbours)]:
            assert not isinstance(got, BaseException), f"a neighbour's step failed: {got!r}"
            y = joined([got])
            same = torch.equal(y, wanted) if self.exact else torch.allclose(y, wanted, 1e-4, 1e-5)
            assert same, f"a neighbour got {y}, and {wanted} alone"
        for got in told[len(self._neighbours) :]:
            if isinstance(got, BaseException) and not isinstance(got, StreamencError):
                raise got

    def _next(self) -> Signal:
        spec = self.model.spec
        if not self._at:
            self._at = spec.lead
            return cut(self._x, 0, spec.lead)
        start = self._at
        self._at = start + spec.hop if start + 2 * spec.hop <= self._x.shape[2] else spec.lead
        return cut(self._x, start, start + spec.hop)


class Snapshots:
    """`Session.restore` of a forged snapshot, and some hops from there."""

    seconds, peak_bytes = 2.0, 100 << 20

    def __init__(self) -> None:
        # Before the first case, whose time and memory are its own.
        self._crowds = {
            (name, runs): Crowd(served(name, runs)) for name in MODELS for runs in runs_of(name)
        }

    def case(self, rng: Random) -> bytes:
        name = rng.choice(MODELS)
        runs = rng.choice(runs_of(name))
        changes = recipe(rng, served(name, runs).spec)
        return json.dumps({"model": name, "runs": runs, "changes": changes}).encode()

    def take(self, data: bytes) -> None:
        asked = json.loads(data)
        where = asked["model"], asked["runs"]
        crowd = self._crowds.get(where)
        if crowd is None or not crowd.has_room():
            crowd = self._crowds[where] = Crowd(served(*where))
        try:
            crowd.beside(forged(crowd.blob, asked["changes"], crowd.per_step))
        except StreamencError:
            raise
        except Exception:
            del self._crowds[where]  # the next case has new neighbours
            raise


def recipe(rng: Random, spec: StreamSpec) -> list[Change]:
    """Some changes of a snapshot of a model of that spec."""
    return [_change(rng, spec.hop, spec.hop_out) for _ in range(rng.choice((1, 1, 1, 2, 3)))]


def _change(rng: Random, hop: int, hop_out: int) -> Change:
    leaf = rng.randrange(64)
    match rng.randrange(12):
        case 0:
            key = rng.choice(("pushed", "emitted", "hops", "codebooks", "batch", "model", "name"))
            return ["header", key, rng.choice(COUNTS)]
        case 1:
            return ["header", "shape", rng.choice(SHAPES)]
        case 2:
            return ["leaf", leaf, "dtype", rng.choice(DTYPES)]
        case 3:
            how = rng.choice(("half", "twice", "flat", "deep"))
            return ["leaf", leaf, how, rng.randrange(4)]
        case 4:
            return ["leaf", leaf, "fill", rng.choice(NUMBERS)]
        case 5:
            return ["leaf", leaf, "times", rng.choice(NUMBERS)]
        case 6:
            return ["leaf", leaf, "noise", rng.randrange(1000)]
        case 7:
            return [
                "leaf",
                leaf,
                "count",
                rng.choice((0, 1, 2, 9, 100, 10**4, 2**40, -1, -(2**63))),
            ]
        case 8:
            how, what = rng.choice((
                ("dtype", rng.choice(DTYPES)), ("twice", rng.randrange(5)), ("half", 2),
                ("long", 1000), ("fill", rng.choice(NUMBERS)), ("flat", 1), ("deep", 3),
                ("none", None),
            ))  # fmt: skip
            return ["waiting", how, what]
        case 9:
            steps = rng.choice((1, 2, 10, 1000, 10**6, 2**31, 2**40, (2**53 - 10**6) // hop))
            return ["ahead", steps, hop, hop_out]
        case 10:
            how = ("none", "deeper", "one", "flat", "more", "many", "turned")
            return ["tree", rng.choice(how)]
    return rng.choice((
        ["text", rng.choice(("header", "tree", "streamenc_snapshot", "more")), rng.choice(TEXTS)],
        ["bytes", rng.randrange(10**6)],
        ["behind", rng.choice((1, 8, 10**6))],
    ))  # fmt: skip


def target(folder: Path) -> Snapshots:
    return Snapshots()
