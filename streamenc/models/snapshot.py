"""Snapshots of streams: what is in one, and why one is refused before anything of it is taken.

A checksum tells damage, not intent. Where strangers hand snapshots in, as on a server, one with the
right checksum may still hold tensors that the model would fail on in the middle of a step, beside
other people's streams. So all that can be known is checked: the model, the counters against the
lengths of its steps, each tensor's type and shape against those of a state that the model itself
has made, positions against what the stream has taken, and the size of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from streamenc import state as states
from streamenc.errors import InputError, SnapshotError
from streamenc.models.model import Model
from streamenc.state import Form, State

# Of one step; a stream that never completes one would only take memory.
MAX_STEP_SECONDS = 3600
# Of one item: an image of 4096 x 2160.
MAX_ITEM_NUMBERS = 3 * 4096 * 2160
# A stranger counts up to 2^53 without losing one in JSON; what a stream adds still fits int64.
MAX_COUNT = 1 << 53
# What a snapshot has beside its tensors: the header, and a line of JSON for each of them.
MAX_HEADER_BYTES = 1 << 20

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
        known[shape] = states.form(state)


def read_snapshot(blob: bytes, model: Model, batch: int) -> Snapshot:
    """A snapshot of a stream through `model`; its tensors are on the model's device.

    Where no stream of such items went through the model before, one step of it is computed.

    Raises:
        SnapshotError: Where it is of another model, batch or version, damaged, or not what a stream
            through this model can have left.
    """
    header = states.read_header(blob)
    mine = {"model": model.fingerprint(), "batch": batch}
    for key, value in mine.items():
        if header.get(key) != value:
            raise SnapshotError(
                f"the snapshot is of {key} {header.get(key)!r} ({header.get('name')}); this "
                f"stream is of {key} {value!r} ({model.spec.name})"
            )
    pushed, emitted, hops = (_count(header, key) for key in ("pushed", "emitted", "hops"))
    codebooks, shape = header.get("codebooks"), header.get("shape")
    if type(codebooks) not in (int, type(None)):
        raise SnapshotError(f"the snapshot has {codebooks!r} codebooks; wanted a number or none")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise SnapshotError(f"the snapshot has items of shape {shape!r}; wanted a list of numbers")
    spec = model.spec
    if hops < 1 or hops > 1 and hops * spec.hop > MAX_STEP_SECONDS * spec.input.rate:
        raise SnapshotError(
            f"the snapshot has steps of {hops} hops; {spec.name} takes 1 hop to an hour in a step"
        )
    started = pushed >= spec.lead
    wanted = _form(model, tuple(shape)) if started else None
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
            f"of shape {tuple(shape)} is {_told(wanted)}, with {batch} as the first axis of each"
        )
    pending = 0 if waiting is None else _check_waiting(waiting, model, (batch, *shape))
    steps, rest = divmod(pushed - pending - spec.lead, spec.hop) if started else (0, 0)
    made = spec.lead_out + steps * spec.hop_out if started else 0
    if pending >= longest or rest or emitted != made or not started and pending != pushed:
        raise SnapshotError(
            f"the snapshot took {pushed} items, holds {pending} for the next step and gave "
            f"{emitted}; {spec.name} in steps of {hops} hops does not come to that"
        )
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
    return Snapshot(state, waiting, tuple(shape), hops, pushed, emitted, codebooks)


def _count(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise SnapshotError(f"the snapshot has {value!r} as {key}; wanted a count")
    return value


def _form(model: Model, shape: tuple[int, ...]) -> Form:
    """The form of a state of a stream of such items."""
    known = _forms.setdefault(model, {})
    if shape not in known:
        if math.prod(shape) > MAX_ITEM_NUMBERS:
            raise SnapshotError(
                f"the snapshot has items of shape {shape}, more than {MAX_ITEM_NUMBERS} numbers"
            )
        like, lead = model.like, model.spec.lead
        try:
            with torch.inference_mode():
                _, state = model.step(like.new_zeros(1, *shape[:1], lead, *shape[1:]), None)
        except Exception as error:  # whatever the layers say of a shape that no user can bring
            raise SnapshotError(
                f"the snapshot has items of shape {shape}, which {model.spec.name} does not take: "
                f"{error}"
            ) from error
        remember_form(model, shape, state)
    return known[shape]


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


def _told(form: Form) -> str:
    """A form in a few words, for people."""
    text = "nothing" if form is None else str(form)
    return text if len(text) <= 200 else f"{text[:200]}..."
