"""The tensors of what torch.save wrote: a state dict, or a training's whole checkpoint.

Both of its formats are read, the zip file and the older one: five pickles in a row, the fourth of
which is the content and the fifth the keys of the storages that follow. Beside the weights such
files hold what a training had at hand: its arguments, dictionaries, an optimizer. Their classes
are neither imported nor called: something inert stands in their place.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamenc.checkpoints.archive import MAX_ENTRIES, Archive
from streamenc.checkpoints.opcodes import Inert
from streamenc.checkpoints.unpickling import (
    MAX_PICKLE_BYTES,
    OddTensor,
    PickledTensors,
    Storage,
    StoredTensor,
    Unpickler,
)

MAX_NAMES = 1000
_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Where trainings keep the weights, one inside the other.
_WRAPPERS = ("state_dict", "best_state", "model_state_dict", "model")
_COUNT = struct.Struct("<q")


class ZippedPickle(Archive):
    """Named tensors of torch.save's zip file, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _Foreign(), _tensors)


class LegacyPickle(PickledTensors):
    """Named tensors of the format before it, likewise.

    Raises whatever a pickle's opcodes stumble over for what is no such file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        size = path.stat().st_size
        with path.open("rb") as file:
            content = Unpickler(file.read(MAX_PICKLE_BYTES), _Foreign())
            loaded = [content.load() for _ in range(3)]
            if loaded[:2] != [_MAGIC, _PROTOCOL]:
                raise pickle.UnpicklingError("it is a pickle, but not of torch.save")
            if not isinstance(loaded[2], dict) or loaded[2].get("little_endian") is not True:
                raise pickle.UnpicklingError("its numbers are not said to be little-endian")
            self._root = content.load()
            self._tensors = _tensors(self._root)
            keys = content.load()
            if not isinstance(keys, list) or len(keys) > MAX_ENTRIES:
                raise pickle.UnpicklingError("it has no list of storages")
            at = content.at
            for key in map(str, keys):
                storage = content.storages.pop(key, None)
                if storage is None:
                    raise pickle.UnpicklingError(f"no tensor has the storage {key!r}")
                file.seek(at)
                if file.read(_COUNT.size) != _COUNT.pack(storage.items):
                    raise pickle.UnpicklingError(f"storage {key!r} has another size than announced")
                self._places[key] = at + _COUNT.size
                at += _COUNT.size + storage.bytes
        if content.storages or at > size:
            raise pickle.UnpicklingError(f"it has {size} bytes; its tensors reach beyond them")

    def _content(self, storage: Storage) -> bytes:
        with self._path.open("rb") as file:
            file.seek(self._places[storage.key] + storage.start * storage.dtype.itemsize)
            content = file.read(storage.bytes)
        if len(content) != storage.bytes:
            raise ValueError(f"{len(content)} bytes are left; {storage.bytes} were announced")
        return content


def open_pickled(path: Path) -> ZippedPickle | LegacyPickle:
    """Raises whatever a pickle's opcodes stumble over for what is no such file."""
    with path.open("rb") as file:
        begins = file.read(len(_ZIP))
    return ZippedPickle(path) if begins == _ZIP else LegacyPickle(path)


class _Foreign:
    """Something inert for each name that no tensor needs; it says the name in messages."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, str], type[Inert]] = {}

    def __call__(self, module: str, name: str) -> type[Inert]:
        if (module, name) not in self._made:
            if len(self._made) >= MAX_NAMES:
                return Inert
            told = {"__slots__": (), "__qualname__": f"{module}.{name}"}
            self._made[module, name] = type("Inert", (Inert,), told)
        return self._made[module, name]


def _tensors(root: Any) -> Mapping[str, StoredTensor | OddTensor]:
    for wrapper in _WRAPPERS:
        if isinstance(root, dict) and isinstance(root.get(wrapper), dict):
            root = root[wrapper]
    if not isinstance(root, dict):
        what = type(root).__qualname__ if isinstance(root, Inert) else type(root).__name__
        raise pickle.UnpicklingError(
            f"wanted a dict of tensors, got {what!r}; save the model's state_dict() alone"
        )
    tensors = {str(k): v for k, v in root.items() if isinstance(v, StoredTensor | OddTensor)}
    if not tensors:
        raise pickle.UnpicklingError("wanted a dict of tensors, got a dict without any")
    return tensors
