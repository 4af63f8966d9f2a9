"""Which kind of data set an address is, by its look."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from streamenc.bulk.inputs.datainput import Input

# kind -> "module:class", imported when it is used.
KINDS = {
    "folder": "streamenc.bulk.inputs.folder:FolderInput",
}


def look(address: str) -> str:
    """The kind of data set that `address` is, by its name and its first bytes.

    Raises UsageError where it is none that is known.
    """
    return "folder"


def open_input(kind: str, address: str, takes: str, kept: Path, **options: Any) -> Input:
    """The input of a kind; `takes` and `kept`: see Input."""
    module, _, name = KINDS[kind].partition(":")
    made: Input = getattr(import_module(module), name)(address, takes, kept, **options)
    return made
