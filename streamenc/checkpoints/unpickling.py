"""An unpickler that makes tensors' descriptions, plain containers, and nothing else.

A pickle names classes and functions and has them called. Of those only the handful is known here
that tensors need, and each is a function of ours that describes a tensor: which storage, where in
it, of which shape. What becomes of all other names is up to the kind of file: refused, or put in
place of by something inert. No name is ever imported.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from streamenc.checkpoints.opcodes import Call, Inert, Machine, fill
from streamenc.checkpoints.tensortypes import UnusableTensor

MAX_PICKLE_BYTES = 16 << 20
MAX_AXES = 8
MAX_ITEMS = 1 << 40

# The names of storages, which tell the type of what is in them.
_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "UntypedStorage": torch.uint8,
}
_DTYPES = {str(t).removeprefix("torch."): t for t in vars(torch).values() if type(t) is torch.dtype}


class Storage(NamedTuple):
    """Where numbers are stored. `start`: how many stand before them, of the file's own storage."""

    key: str
    dtype: torch.dtype
    items: int
    start: int = 0

    @property
    def bytes(self) -> int:
        return self.items * self.dtype.itemsize


class StoredTensor(NamedTuple):
    """A tensor's type and place in its storage, checked; nothing is read yet."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, content: bytes) -> torch.Tensor:
        """The tensor, from all bytes of its storage."""
        if not prod(self.size):
            return torch.empty(self.size, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(content), dtype=self.dtype)
        if prod(self.size) == len(flat):
            return flat.as_strided(self.size, self.stride, self.offset)
        return flat.as_strided(self.size, self.stride, self.offset).clone()


class OddTensor(NamedTuple):
    """A tensor that is no array of numbers. `what`: "a sparse tensor"."""

    what: str
    size: tuple[int, ...]


def first(value: Any, *rest: Any) -> Any:
    """What is wrapped is taken as it is."""
    return value


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    return _placed(storage, offset, size, stride, getattr(storage, "dtype", None))


def _rebuild_typed(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *rest: Any
) -> StoredTensor:
    """Of the types without a storage of their own name, such as float8."""
    return _placed(storage, offset, size, stride, dtype)


def _placed(storage: Any, offset: Any, size: Any, stride: Any, dtype: Any) -> StoredTensor:
    numbers = [offset, *size, *stride]
    if (
        not isinstance(storage, Storage)
        or not isinstance(dtype, torch.dtype)
        or len(size) != len(stride)
        or len(size) > MAX_AXES
        or not all(type(n) is int and 0 <= n <= MAX_ITEMS for n in numbers)
    ):
        raise pickle.UnpicklingError("a tensor is not described by whole numbers")
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    items = storage.bytes // dtype.itemsize
    # Overlapping strides could ask for more numbers than the storage has.
    if prod(size) > items or (prod(size) and reach > items):
        raise pickle.UnpicklingError(
            f"a tensor of {tuple(size)} reaches beyond its {items} stored numbers"
        )
    return StoredTensor(storage, dtype, offset, tuple(size), tuple(stride))


def _rebuild_of_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """A tensor of a class of its own."""
    return function(*arguments) if isinstance(function, Call) else Inert()


def _odd(what: str, axis: int | None) -> Call:
    """axis: where among the arguments the size stands."""

    def rebuild(*arguments: Any) -> OddTensor:
        size = () if axis is None else arguments[axis]
        numbers = isinstance(size, tuple | list) and all(type(n) is int for n in size)
        return OddTensor(what, tuple(size) if numbers else ())

    return Call(rebuild)


def _dict_of(items: Any = ()) -> dict[Any, Any]:
    """Of pairs, as Python 2 wrote an ordered dict."""
    made: dict[Any, Any] = {}
    if isinstance(items, dict):
        return items
    pairs = [item for item in items if isinstance(item, list | tuple) and len(item) == 2]
    fill(made, (key for key, _ in pairs), (value for _, value in pairs))
    return made


class Unpickler(Machine):
    """Pickles of a file of tensors.

    foreign  Gives what stands for a name that no tensor needs, or raises pickle.UnpicklingError.

    Attributes:
        storages: Those that tensors lie in, by key.
    """

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): Call(_dict_of),
        ("torch", "Size"): Call(tuple),
        ("torch._utils", "_rebuild_tensor"): Call(_rebuild),
        ("torch._utils", "_rebuild_tensor_v2"): Call(_rebuild),
        ("torch._utils", "_rebuild_tensor_v3"): Call(_rebuild_typed),
        ("torch._utils", "_rebuild_parameter"): Call(first),
        ("torch._utils", "_rebuild_parameter_with_state"): Call(first),
        ("torch._tensor", "_rebuild_from_type_v2"): Call(_rebuild_of_type),
        ("torch._utils", "_rebuild_qtensor"): _odd("a quantised tensor", 2),
        ("torch._utils", "_rebuild_sparse_tensor"): _odd("a sparse tensor", None),
        ("torch._utils", "_rebuild_nested_tensor"): _odd("a nested tensor", None),
        ("torch._utils", "_rebuild_wrapper_subclass"): _odd("a tensor of another library", 2),
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _odd(
            "on the meta device, without values", 1
        ),
    }

    def __init__(self, content: bytes, foreign: Callable[[str, str], Any]) -> None:
        super().__init__(content)
        self._foreign = foreign
        self.storages: dict[str, Storage] = {}

    def find(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        known = self._KNOWN.get((module, name))
        return self._foreign(module, name) if known is None else known

    def refer(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":
            return pid[1]  # a class, and its source text, as the older format has them
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is no storage")
        _, dtype, key, _, items, *rest = pid
        if not isinstance(dtype, torch.dtype) or not str(key).isalnum() or type(items) is not int:
            raise pickle.UnpicklingError("a storage is not described by a type, a name and a size")
        if not 0 <= items <= MAX_ITEMS:
            raise pickle.UnpicklingError(f"a storage of {items} numbers")
        whole = self.storages.setdefault(str(key), Storage(str(key), dtype, items))
        if whole != (str(key), dtype, items, 0):
            raise pickle.UnpicklingError("one storage is described in two ways")
        if not rest or rest[0] is None:
            return whole
        _, start, size = rest[0]
        if not all(type(n) is int and n >= 0 for n in (start, size)) or start + size > items:
            raise pickle.UnpicklingError("a view reaches beyond its storage")
        return Storage(str(key), dtype, size, start)


class PickledTensors(ABC):
    """Named tensors of a pickle, each read when it is asked for. A subclass sets `_tensors`, and
    `_root`, all that the pickle describes."""

    _tensors: Mapping[str, StoredTensor | OddTensor]
    _root: Any = None

    def beside(self, *path: str) -> dict[str, Any]:
        """The numbers and the text of a dict that was saved beside the tensors; empty where there
        is none. `path`: its key, from the outermost dict on."""
        found = self._root
        for key in path:
            found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            return {}
        plain = (bool, int, float, str, type(None))
        return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, plain)}

    def keys(self) -> Iterable[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].size

    def get(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if isinstance(tensor, OddTensor):
            raise UnusableTensor(tensor.what)
        return tensor.of(self._content(tensor.storage))

    @abstractmethod
    def _content(self, storage: Storage) -> bytes:
        """The numbers of a storage. Raises ValueError where there are fewer than announced."""
