"""Files of weights: each format behind the same three calls, after a look at what it really is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from torch import Tensor

from streamenc.checkpoints.pickled import open_pickled
from streamenc.checkpoints.torchscript import TorchScriptFile
from streamenc.errors import CheckpointError

PICKLED = {".th", ".pt", ".pth", ".bin", ".ckpt"}
ENDINGS = {".safetensors", ".jit", *PICKLED}
# Of one file, and of all shards of a model: those of many experts around an encoder have 30,000.
MAX_TENSORS = 50_000
MAX_HEADER_BYTES, _HEADER_SIZE_BYTES = 16 << 20, 8
_POINTER = b"version https://git-lfs.github.com/spec"


class WeightFile(Protocol):
    """Named tensors, each read when it is asked for."""

    def keys(self) -> Iterable[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def get(self, name: str) -> Tensor: ...


class SafetensorsFile:
    def __init__(self, path: Path) -> None:
        _check_header(path)
        self._open: Any = safe_open(path, framework="pt")

    def keys(self) -> Iterable[str]:
        return list(self._open.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._open.get_slice(name).get_shape())

    def get(self, name: str) -> Tensor:
        tensor: Tensor = self._open.get_tensor(name)
        return tensor


def _check_header(path: Path) -> None:
    """Raises ValueError where the list of tensors is one that would take long to read."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(_HEADER_SIZE_BYTES), "little")
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes; wanted at most {MAX_HEADER_BYTES}")
        tensors = file.read(size).count(b"{")
    if tensors > MAX_TENSORS:
        raise ValueError(f"{tensors} tensors; wanted at most {MAX_TENSORS}")


class Renamed:
    """A file under other names: `renamed` gives the new one of each that it has."""

    def __init__(self, file: WeightFile, renamed: Callable[[str], str]) -> None:
        self._file = file
        self._names = {renamed(name): name for name in file.keys()}

    def keys(self) -> Iterable[str]:
        return list(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.shape(self._names[name])

    def get(self, name: str) -> Tensor:
        return self._file.get(self._names[name])


def open_file(path: Path) -> WeightFile:
    """Raises CheckpointError for what is no file of weights, or not a whole one."""
    if path.suffix not in ENDINGS:
        raise CheckpointError(
            f"{path}: unknown ending {path.suffix!r}; wanted .safetensors, .jit or one of "
            f"{sorted(PICKLED)}"
        )
    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return SafetensorsFile(path)
        return TorchScriptFile(path) if path.suffix == ".jit" else open_pickled(path)
    except Exception as error:  # an unpickler raises whatever its opcodes stumble over
        raise CheckpointError(
            f"{path} is no readable checkpoint: {reason_of(error)}. Is it truncated? "
            "Only tensors are read from it, never code"
        ) from error


def exists(path: Path) -> bool:
    """Whether something of that name is there. Raises CheckpointError for what is no name."""
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL in it
        raise CheckpointError(
            f"{str(path)!r:.200} is no name of a file: {reason_of(error)}"
        ) from error


def check_file(path: Path) -> None:
    """Raises CheckpointError for what is no file, and for what stands in place of one."""
    if not exists(path) or not path.is_file():
        what = "is no file" if exists(path) else "does not exist"
        raise CheckpointError(f"{path} {what}; is the folder whole? Fetch it again")
    try:
        with path.open("rb") as file:
            begins = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    if begins.startswith(_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer of {path.stat().st_size} bytes, not the file itself: run "
            "`git lfs pull` in its folder"
        )
    if begins.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise CheckpointError(f"{path} is a web page, not the file itself: fetch it again")


def read_file(path: Path, most: int) -> bytes:
    """All of a file of at most `most` bytes. Raises CheckpointError."""
    check_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)  # whatever a size says that changes meanwhile
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    if len(content) > most:
        raise CheckpointError(f"{path}: {size} bytes is too large for it; wanted at most {most}")
    return content


def reason_of(error: BaseException) -> str:
    """An error in one line of plain text."""
    line = (str(error).splitlines() or [""])[0]
    return "".join(c if c.isprintable() else "?" for c in line) or type(error).__name__
