"""The parameters of a TorchScript archive, without running anything that is in it.

Such an archive is a zip file: the code of the modules, a pickle of their attributes, and one file
for each tensor's storage. The code is not read at all. The pickle is read by an unpickler that
knows the handful of names which tensors need and refuses all others; a module becomes a plain
holder of its attributes, whatever class it names. Everything is bounded before it is read: sizes
come from the zip's directory, compressed entries are refused, and no tensor may reach beyond its
storage.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

MAX_PICKLE_BYTES = 16 << 20
MAX_ENTRIES = 100_000
MAX_DEPTH = 50
MAX_AXES = 8
MAX_ITEMS = 1 << 40

_DTYPES = {
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
}


class TorchScriptFile:
    """Named tensors of an archive, each read when it is asked for.

    Raises pickle.UnpicklingError, zipfile.BadZipFile or OSError for what is no such archive.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)
        entries = self._zip.infolist()
        if len(entries) > MAX_ENTRIES:
            raise pickle.UnpicklingError(f"{len(entries)} entries; wanted at most {MAX_ENTRIES}")
        self._entries = {entry.filename: entry for entry in entries}
        pickles = [name for name in self._entries if name.count("/") == 1]
        pickles = [name for name in pickles if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise pickle.UnpicklingError("it has no data.pkl, so it is no TorchScript archive")
        self._folder = pickles[0].partition("/")[0]
        content = self._read(pickles[0], MAX_PICKLE_BYTES)
        root = _Unpickler(io.BytesIO(content)).load()
        self._tensors = dict(_walk(root))

    def keys(self) -> Iterable[str]:
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].size

    def get(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        entry = f"{self._folder}/data/{tensor.storage.key}"
        wanted = tensor.storage.items * tensor.storage.dtype.itemsize
        content = self._read(entry, wanted)
        if len(content) != wanted:
            raise ValueError(f"{entry} has {len(content)} bytes; {wanted} were announced")
        if not wanted:
            return torch.empty(tensor.size, dtype=tensor.storage.dtype)
        flat = torch.frombuffer(bytearray(content), dtype=tensor.storage.dtype)
        return flat.as_strided(tensor.size, tensor.stride, tensor.offset).clone()

    def _read(self, name: str, most: int) -> bytes:
        entry = self._entries.get(name)
        if entry is None:
            raise ValueError(f"{name} is missing in the archive")
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
            raise pickle.UnpicklingError(
                f"{name} has {entry.file_size} bytes, {entry.compress_size} in the file; wanted at "
                f"most {most}, uncompressed"
            )
        return self._zip.read(entry)


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    items: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Module:
    """Stands for an object of a class that the archive defines."""

    attributes: Mapping[str, Any] = MappingProxyType({})  # a pickle makes one without __init__

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module's attributes are a {type(state).__name__}")
        self.attributes = {str(name): value for name, value in state.items()}


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> _Tensor:
    """A tensor's place in its storage, checked; nothing is read yet."""
    numbers = [offset, *size, *stride]
    if (
        not isinstance(storage, _Storage)
        or len(size) != len(stride)
        or len(size) > MAX_AXES
        or not all(type(n) is int and 0 <= n <= MAX_ITEMS for n in numbers)
    ):
        raise pickle.UnpicklingError("a tensor is not described by whole numbers")
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    # Overlapping strides could ask for more numbers than the storage has.
    if prod(size) > storage.items or (prod(size) and reach > storage.items):
        raise pickle.UnpicklingError(
            f"a tensor of {tuple(size)} reaches beyond its {storage.items} stored numbers"
        )
    return _Tensor(storage, offset, tuple(size), tuple(stride))


def _first(value: Any, *rest: Any) -> Any:
    """What TorchScript wraps for its type is taken as it is."""
    return value


class _Call:
    """A function that a pickle may call and not change."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a function")


class _Unpickler(pickle.Unpickler):
    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild),
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.jit._pickle", "restore_type_tag"): _Call(_first),
        ("torch.jit._pickle", "build_intlist"): _Call(_first),
        ("torch.jit._pickle", "build_doublelist"): _Call(_first),
        ("torch.jit._pickle", "build_boollist"): _Call(_first),
        ("torch.jit._pickle", "build_tensorlist"): _Call(_first),
    }

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        try:
            return self._KNOWN[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which no archive of parameters needs"
            ) from None

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("it refers to something that is no storage")
        _, dtype, key, _, items = pid
        if not isinstance(dtype, torch.dtype) or not str(key).isalnum() or type(items) is not int:
            raise pickle.UnpicklingError("a storage is not described by a type, a name and a size")
        if not 0 <= items <= MAX_ITEMS:
            raise pickle.UnpicklingError(f"a storage of {items} numbers")
        return _Storage(str(key), dtype, items)


def _walk(root: Any) -> Iterator[tuple[str, _Tensor]]:
    """The tensors in a module and in those inside it, by their dotted names."""
    waiting, seen = [("", root)], 0
    while waiting:
        name, value = waiting.pop()
        seen += 1
        # Modules that hold each other twice, level by level, would be endless for any purpose.
        if seen > MAX_ENTRIES or name.count(".") > MAX_DEPTH:
            raise pickle.UnpicklingError(
                f"it has more than {MAX_ENTRIES} attributes, or modules more than {MAX_DEPTH} deep"
            )
        if isinstance(value, _Tensor):
            yield name, value
        elif isinstance(value, _Module):
            waiting += [(f"{name}.{k}" if name else k, v) for k, v in value.attributes.items()]
