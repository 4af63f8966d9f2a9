"""The parameters of a TorchScript archive, without running anything that is in it.

Such an archive is a zip file: the code of the modules, a pickle of their attributes, and one file
for each tensor's storage. The code is not read at all. The pickle is read by an unpickler that
knows the handful of names which tensors need and refuses all others; a module becomes a plain
holder of its attributes, whatever class it names.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from streamenc.checkpoints.archive import MAX_ENTRIES, Archive
from streamenc.checkpoints.opcodes import Call, Stand
from streamenc.checkpoints.unpickling import OddTensor, StoredTensor, first

MAX_DEPTH = 50
# What TorchScript wraps for its type.
_WRAPPERS = {
    ("torch.jit._pickle", name): Call(first)
    for name in (
        "restore_type_tag",
        "build_intlist",
        "build_doublelist",
        "build_boollist",
        "build_tensorlist",
    )
}


class TorchScriptFile(Archive):
    """Named parameters and buffers of an archive, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _foreign, lambda root: dict(_walk(root)))


class _Module(Stand):
    """Stands for an object of a class that the archive defines."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def build(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module's attributes are a {type(state).__name__}")
        self.attributes = {str(name): value for name, value in state.items()}


def _foreign(module: str, name: str) -> Any:
    if module.partition(".")[0] == "__torch__":
        return _Module
    try:
        return _WRAPPERS[module, name]
    except KeyError:
        raise pickle.UnpicklingError(
            f"it names {module}.{name}, which no archive of parameters needs"
        ) from None


def _walk(root: Any) -> Iterator[tuple[str, StoredTensor | OddTensor]]:
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
        if isinstance(value, StoredTensor | OddTensor):
            yield name, value
        elif isinstance(value, _Module):
            waiting += [(f"{name}.{k}" if name else k, v) for k, v in value.attributes.items()]
