"""State trees: what a stream remembers between two steps, as plain data outside of any module.

A state is a tensor, None (nothing to remember), or a tuple of states. Every tensor has the lane
(the batch) as its first axis, so one lane can be copied, moved or saved without knowing the model.
There are no Python numbers in it: positions are tensors, so a step can be captured in a CUDA graph
or exported to ONNX.

A step consumes the state it is given: key/value rings are written ahead in place. To go on from one
state twice, `clone` it first.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors.torch import load as _load_safetensors
from safetensors.torch import save as _save_safetensors
from torch import Tensor

from streamenc.errors import SnapshotError
from streamenc_kernels import write_rows

State: TypeAlias = "Tensor | None | tuple[State, ...]"
# A state's tree with each tensor's type and its axes behind the lane: ("float32", (8, 3)).
Form: TypeAlias = "tuple[Form, ...] | tuple[str, tuple[int, ...]] | None"

# 2: input that waits has time on axis 2, also of video.
SNAPSHOT_VERSION = 2
MAX_SNAPSHOT_BYTES = 1 << 30
# What a snapshot has beside its tensors: the header, and a line of JSON for each of them.
MAX_HEADER_BYTES = 1 << 20


class Paged(NamedTuple):
    """A leaf of a batch that lies spread over a pool of many lanes: row b is pool[lanes[b]].

    A step that takes one writes to those lanes of the pool in place, and gives it back as it came;
    or it gives back a tensor of the batch, for the caller to write there.

    pool   (all lanes, ...).
    lanes  (batch,) int64.
    """

    pool: Tensor
    lanes: Tensor

    def taken(self) -> Tensor:
        """The batch's own leaf, copied out: (batch, ...)."""
        return self.pool.index_select(0, self.lanes)


def leaves(state: State) -> Iterator[Tensor]:
    """The tensors of a state, in a fixed order."""
    found: list[Tensor] = []
    _gather(state, found)
    return iter(found)


def _gather(state: State, found: list[Tensor]) -> None:
    if isinstance(state, tuple):
        for part in state:
            _gather(part, found)
    elif isinstance(state, Tensor):
        found.append(state)


def map_state(fn: Callable[[Tensor], Tensor], state: State) -> State:
    """The same tree with `fn` applied to each tensor."""
    if isinstance(state, Tensor):
        return fn(state)
    if isinstance(state, tuple):
        return tuple([map_state(fn, part) for part in state])
    return None


def clone(state: State) -> State:
    """An independent copy."""
    return map_state(Tensor.clone, state)


def form(state: State) -> Form:
    """What two states have in common that go through the same step, in one batch or alone."""
    if isinstance(state, Tensor):
        return str(state.dtype).removeprefix("torch."), tuple(state.shape[1:])
    if isinstance(state, tuple):
        return tuple(form(part) for part in state)
    return None


def nbytes(state: State) -> int:
    """Memory of all tensors, in bytes."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state))


def allocate(one_lane: State, lanes: int) -> State:
    """An all-zero state of `lanes` lanes, of the same shapes as `one_lane`, a state of one lane."""
    return map_state(lambda leaf: leaf.new_zeros((lanes, *leaf.shape[1:])), one_lane)


def lane(state: State, index: int) -> State:
    """One lane, copied out as a state of batch 1."""
    return map_state(lambda leaf: leaf[index : index + 1].clone(), state)


def put_lane(pool: State, index: int, one_lane: State) -> None:
    """Copies a state of batch 1 into lane `index` of `pool`."""
    for target, value in zip(leaves(pool), leaves(one_lane), strict=True):
        target[index : index + 1] = value


def commit(pool: State, new: State, active: Tensor) -> None:
    """Moves the active lanes of `pool` on to `new`; the others stay as they were, to the bit.

    active  (lanes,) bool. A leaf of `new` that *is* its leaf in `pool` was written ahead in place
            (a ring) and needs no commit: what an idle lane's ring got written ahead is not visible,
            as its position stays.
    """
    moved = [
        (old, value)
        for old, value in zip(leaves(pool), leaves(new), strict=True)
        if value is not old
    ]
    write_rows([old for old, _ in moved], [value for _, value in moved], active=active)


def to_bytes(state: State, header: dict[str, Any]) -> bytes:
    """A snapshot: safetensors with `header` (JSON) and the form of the tree in the metadata."""
    tensors = {str(i): leaf.contiguous() for i, leaf in enumerate(leaves(state))}
    metadata = {
        "streamenc_snapshot": str(SNAPSHOT_VERSION),
        "header": json.dumps(header),
        "tree": json.dumps(_tree(state)),
    }
    metadata["crc32"] = str(_crc32(metadata, tensors))
    return bytes(_save_safetensors(tensors, metadata))


def read_header(blob: bytes) -> dict[str, Any]:
    """The header of a snapshot, before any of its tensors is looked at.

    Raises SnapshotError where the bytes are no snapshot, or of another version.
    """
    metadata = _metadata(blob)
    version = metadata.get("streamenc_snapshot")
    if version != str(SNAPSHOT_VERSION):
        raise SnapshotError(
            f"this snapshot has version {version!r}; this streamenc reads version "
            f"{SNAPSHOT_VERSION}: take the snapshot and restore it with the same release"
        )
    try:
        header = json.loads(metadata["header"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise SnapshotError(f"the snapshot is damaged: {error}") from error
    if not isinstance(header, dict):
        raise SnapshotError("the snapshot is damaged: its header is no JSON object")
    return header


def from_bytes(blob: bytes) -> tuple[State, dict[str, Any]]:
    """The state and the header of a snapshot.

    Raises SnapshotError where the bytes are no snapshot, are damaged, or are of another version.
    """
    header, metadata = read_header(blob), _metadata(blob)
    try:
        tensors = _load_safetensors(blob)
        if metadata["crc32"] != str(_crc32(metadata, tensors)):
            raise ValueError("its content is not what was saved")
        state = _build(json.loads(metadata["tree"]), tensors)
    except Exception as error:  # safetensors raises its own types, the JSON parts theirs
        raise SnapshotError(f"the snapshot is damaged: {error}") from error
    return state, header


def _metadata(blob: bytes) -> dict[str, str]:
    if len(blob) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(f"{len(blob)} bytes is more than a snapshot may have")
    length = int.from_bytes(blob[:8], "little") if len(blob) >= 8 else -1
    if not 0 <= length <= len(blob) - 8:
        raise SnapshotError(f"{len(blob)} bytes that are no snapshot, or a truncated one")
    if length > MAX_HEADER_BYTES:
        raise SnapshotError(
            f"a header of {length} bytes; that of a snapshot has at most {MAX_HEADER_BYTES}"
        )
    try:
        metadata = json.loads(blob[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"these bytes are no snapshot: {error}") from error
    if not isinstance(metadata, dict) or "streamenc_snapshot" not in metadata:
        raise SnapshotError("these bytes are safetensors, but no snapshot of a stream")
    return metadata


def _crc32(metadata: dict[str, str], tensors: dict[str, Tensor]) -> int:
    total = zlib.crc32(f"{metadata['header']} {metadata['tree']}".encode())
    for i in range(len(tensors)):
        leaf = tensors[str(i)].detach().cpu()
        total = zlib.crc32(f"{leaf.dtype} {tuple(leaf.shape)}".encode(), total)
        total = zlib.crc32(leaf.reshape(-1).view(torch.uint8).numpy().data, total)
    return total


def _tree(state: State) -> Any:
    """The tree with 1 for a tensor and null for None."""
    if isinstance(state, tuple):
        return [_tree(part) for part in state]
    return None if state is None else 1


def _build(form: Any, tensors: dict[str, Tensor]) -> State:
    indices = iter(range(len(tensors)))

    def build(part: Any) -> State:
        if isinstance(part, list):
            return tuple(build(p) for p in part)
        return None if part is None else tensors[str(next(indices))]

    return build(form)
