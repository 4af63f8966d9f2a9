"""Snapshots of streams: what is in one, and why one is refused before anything of it is taken.

A checksum tells damage, not intent. Where strangers hand snapshots in, as on a server, one with the
right checksum may still hold tensors that the model would fail on in the middle of a step, beside
other people's streams. So all that can be known is checked: the model, the counters against the
lengths of its steps, each tensor's type and shape against those of a state that the model itself
has made, positions against what the stream has taken, numbers for being finite, and the size of the
whole.

Nor may a few bytes make somebody else compute or remember much: what a state of large images is
like follows from states of small ones.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.errors import InputError, SnapshotError
from streamenc.models.model import Model
from streamenc.models.signal import Scaled, values
from streamenc.state import MAX_HEADER_BYTES, Form, State

# Of one step, unless the stream that goes on has longer ones itself; one that never completes a
# step would only take memory.
MAX_STEP_SECONDS = 60
# Of one item: an image of 4096 x 2160.
MAX_ITEM_NUMBERS = 3 * 4096 * 2160
# A stranger counts up to 2^53 without losing one in JSON; what a stream adds still fits int64.
MAX_COUNT = 1 << 53
# Sides of images that states are made of to tell what those of all other images are like, in units.
PROBES = (2, 3)
# Shapes of items of which a model's forms are remembered.
MAX_FORMS = 64

# By model, and by the shape of an item: the form of its streams' states.
_forms: WeakKeyDictionary[Model, dict[tuple[int, ...], Form]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A stream as it was; the names are those of Stream's attributes.

    Attributes:
        waiting: Items for the next step, (batch, channels, time, ...); None for none.
    """

    state: State
    waiting: Tensor | None
    shape: tuple[int, ...]
    hops: int
    pushed: int
    emitted: int
    codebooks: int | None

    def to_bytes(self, model: Model, batch: int) -> bytes:
        header = {
            "model": model.fingerprint(),
            "name": model.spec.name,
            "batch": batch,
            "codebooks": self.codebooks,
            "pushed": self.pushed,
            "emitted": self.emitted,
            "shape": self.shape,
            "hops": self.hops,
        }
        return states.to_bytes((self.waiting, self.state), header)


def remember_form(model: Model, shape: tuple[int, ...], state: State) -> None:
    """Notes the form of a state that `model` has made itself, of a stream of such items."""
    known = _forms.setdefault(model, {})
    if shape not in known:
        while len(known) >= MAX_FORMS:
            del known[next(iter(known))]
        known[shape] = states.form(state)


def read_snapshot(blob: bytes, model: Model, batch: int, hops: int) -> Snapshot:
    """A snapshot of a stream through `model`; its tensors are on the model's device.

    Where no stream of such items went through the model before, a step of it is computed, or of
    models of images some steps of small ones.

    Args:
        batch, hops: Of the stream that is to go on.

    Raises:
        SnapshotError: Where it is of another model, batch or version, damaged, or not what a stream
            through this model can have left.
    """
    header = states.read_header(blob)
    mine = {"model": model.fingerprint(), "batch": batch}
    for key, value in mine.items():
        if header.get(key) != value:
            raise SnapshotError(
                f"the snapshot is of {key} {_told(header.get(key))} "
                f"({_told(header.get('name'))}); this stream is of {key} {value!r} "
                f"({model.spec.name})"
            )
    longest_hops = max(hops, MAX_STEP_SECONDS * model.spec.input.rate // model.spec.hop, 1)
    pushed, emitted, hops = (_count(header, key) for key in ("pushed", "emitted", "hops"))
    codebooks = header.get("codebooks")
    if type(codebooks) not in (int, type(None)):
        raise SnapshotError(
            f"the snapshot has {_told(codebooks)} codebooks; wanted a number or none"
        )
    spec = model.spec
    if not 1 <= hops <= longest_hops:
        raise SnapshotError(
            f"the snapshot has steps of {hops} hops; {spec.name} takes 1 to {longest_hops} here: "
            "open the stream with as many hops a step"
        )
    shape: tuple[int, ...] = (0,)  # which is what a stream has that never had an item
    if pushed or header.get("shape") != [0]:
        shape = _check_shape(header.get("shape"), model)
    started = pushed >= spec.lead
    wanted = _form(model, shape) if started else None
    longest = hops * spec.hop if started else spec.lead
    most = batch * (_nbytes(wanted) + 8 * longest * math.prod(shape)) + MAX_HEADER_BYTES
    if len(blob) > most:
        raise SnapshotError(
            f"the snapshot has {len(blob)} bytes; one of this stream has at most {most}"
        )
    tree, _ = states.from_bytes(blob)
    if not isinstance(tree, tuple) or len(tree) != 2 or isinstance(tree[0], tuple):
        raise SnapshotError("the snapshot is damaged: its parts are not those of a stream")
    waiting, state = tree
    assert waiting is None or isinstance(waiting, Tensor)
    got = states.form(state)
    if got != wanted or any(leaf.shape[:1] != (batch,) for leaf in states.leaves(state)):
        raise SnapshotError(
            f"the snapshot holds a state of {_told(got)}; one of {spec.name} after {pushed} items "
            f"of shape {shape} is {_told(wanted)}, with {batch} as the first axis of each"
        )
    pending = 0 if waiting is None else _check_waiting(waiting, model, (batch, *shape))
    steps, rest = divmod(pushed - pending - spec.lead, spec.hop) if started else (0, 0)
    made = spec.lead_out + steps * spec.hop_out if started else 0
    if pending >= longest or rest or emitted != made or not started and pending != pushed:
        raise SnapshotError(
            f"the snapshot took {pushed} items, holds {pending} for the next step and gave "
            f"{emitted}; {spec.name} in steps of {hops} hops does not come to that"
        )
    for leaf in states.leaves(state):
        if leaf.is_floating_point() and not leaf.isfinite().all():
            raise SnapshotError("the snapshot holds a state with numbers that are not finite")
    # Layers count at their own rates, which lie between the two ends', and before look-ahead.
    most_in = pushed + longest
    most_count = most_in + -(-most_in * spec.hop_out // spec.hop)
    for leaf in states.leaves(state):
        if not leaf.is_floating_point() and leaf.numel():
            least, largest = int(leaf.min()), int(leaf.max())
            if least < 0 or largest > most_count:
                raise SnapshotError(
                    f"the snapshot counts {least} to {largest} in a state of {pushed} items; "
                    "wanted no more than came and went"
                )
    device = model.like.device
    moved = states.map_state(lambda leaf: leaf.to(device), (waiting, state))
    assert isinstance(moved, tuple)
    waiting, state = moved
    assert waiting is None or isinstance(waiting, Tensor)
    return Snapshot(state, waiting, shape, hops, pushed, emitted, codebooks)


def _count(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise SnapshotError(f"the snapshot has {_told(value)} as {key}; wanted a count")
    return value


def _check_shape(shape: Any, model: Model) -> tuple[int, ...]:
    """The shape, where an item that `model` takes has it. Raises SnapshotError."""
    port = model.spec.input
    if (
        not isinstance(shape, list)
        or len(shape) != 1 + port.axes
        or not all(type(n) is int and 0 < n <= MAX_ITEM_NUMBERS for n in shape)
        or math.prod(shape) > MAX_ITEM_NUMBERS
    ):
        raise SnapshotError(
            f"the snapshot has items of shape {_told(shape)}; {model.spec.name} has items of "
            f"{1 + port.axes} axes, of at most {MAX_ITEM_NUMBERS} numbers"
        )
    like = model.like
    whole = port.kind in ("codes", "text")
    nothing = torch.zeros(
        (1, port.channels, 0, *shape[1:]),
        dtype=torch.int64 if whole else like.dtype,
        device=like.device,
    )
    scaled = port.kind == "codes" and model.spec.scaled
    try:
        x = values(model.before(Scaled(nothing, like.new_zeros(1, 1, 0)) if scaled else nothing))
    except InputError as error:
        raise SnapshotError(f"the snapshot has items of shape {shape}: {error}") from error
    taken = (x.shape[1], *x.shape[3:])
    if list(taken) != shape:
        raise SnapshotError(
            f"the snapshot has items of shape {shape}; those of {model.spec.name} are {list(taken)}"
        )
    return taken


def _form(model: Model, shape: tuple[int, ...]) -> Form:
    """The form of a state of a stream of such items, which the model takes."""
    known = _forms.setdefault(model, {})
    if shape in known:
        return known[shape]
    image, sides = model.spec.input.image, shape[1:]
    if not sides or (image is not None and image.size is not None):
        return _made(model, shape)
    unit = 1 if image is None else image.unit
    low, high = (probe * unit for probe in PROBES)
    corners: list[tuple[Form, Fraction]] = []
    for corner in product((low, high), repeat=len(sides)):
        form = _made(model, (shape[0], *corner))
        weights = (
            Fraction(side - low if end == high else high - side, high - low)
            for side, end in zip(sides, corner, strict=True)
        )
        corners.append((form, math.prod(weights, start=Fraction(1))))
    return _between([form for form, _ in corners], [weight for _, weight in corners])


def _made(model: Model, shape: tuple[int, ...]) -> Form:
    """The form of a state that the model makes, of a stream of such items."""
    known = _forms.setdefault(model, {})
    if shape not in known:
        like, lead = model.like, model.spec.lead
        with torch.inference_mode():
            _, state = model.step(like.new_zeros(1, *shape[:1], lead, *shape[1:]), None)
        remember_form(model, shape, state)
    return known[shape]


def _between(forms: Sequence[Form], weights: Sequence[Fraction]) -> Form:
    """The form that lies where the weighted sums of all axes do: these grow with each side of an
    image evenly, or not at all."""
    first = forms[0]
    if first is None:
        return None
    if len(first) == 2 and isinstance(first[0], str):
        axes = zip(*(form[1] for form in forms if form is not None), strict=True)
        sums = (
            sum(weight * int(n) for weight, n in zip(weights, each, strict=True)) for each in axes
        )
        return first[0], tuple(int(n) for n in sums)
    parts = zip(*(form for form in forms if form is not None), strict=True)
    return tuple(_between(each, weights) for each in parts)


def _check_waiting(waiting: Tensor, model: Model, item: tuple[int, ...]) -> int:
    """How many items wait: in a tensor of (batch, channels, time, ...)."""
    shape = (*waiting.shape[:2], *waiting.shape[3:])
    is_text = model.spec.input.kind == "text"
    wanted = torch.int64 if is_text else model.like.dtype
    if waiting.ndim < 3 or shape != item or waiting.dtype != wanted:
        raise SnapshotError(
            f"the snapshot holds items of {waiting.dtype} {tuple(waiting.shape)} for the next "
            f"step; {model.spec.name} wants {wanted}, and {item} without time on axis 2"
        )
    if is_text:
        try:
            model.before(waiting)
        except InputError as error:
            raise SnapshotError(f"the snapshot holds other texts: {error}") from error
    if not waiting.isfinite().all():
        raise SnapshotError("the snapshot holds items for the next step that are not finite")
    return waiting.shape[2]


def _nbytes(form: Form) -> int:
    """Memory of a lane of that form, in bytes."""
    if form is None:
        return 0
    if len(form) == 2 and isinstance(form[0], str):
        dtype = getattr(torch, form[0])
        assert isinstance(dtype, torch.dtype)
        return math.prod(form[1]) * dtype.itemsize
    return sum(_nbytes(part) for part in form)


def _told(what: Any) -> str:
    """What a stranger wrote, however much and however deep, in a few words for people."""
    return "nothing" if what is None else reprlib.repr(what)
