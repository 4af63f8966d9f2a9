"""FileList: the files of a set of archives or tables, found once and then read from a list."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.braces import expanded, has_braces
from streamenc.errors import UsageError

NAME = "files.json"


class FileList:
    """What an address stands for: a file, a pattern, names in braces, or a folder and all within.

    Args:
        kept: Where the list is written when it is first asked for; see Input.
        endings: Of the files that are taken of a folder.

    Attributes:
        root: What stands before all names.
    """

    def __init__(self, address: str, kept: Path, endings: Sequence[str]) -> None:
        self.address, self._endings = address, tuple(endings)
        self._path = kept / NAME

    @cached_property
    def root(self) -> str:
        address = self.address
        if has_braces(address):
            return address[: address.rfind("/", 0, address.index("{")) + 1]
        if filesystem.is_pattern(address):
            return filesystem.root_of(address)
        if filesystem.is_folder(address):
            return address.rstrip("/") + "/"
        return address[: address.rfind("/") + 1]

    @cached_property
    def names(self) -> list[str]:
        """In their order, from the root on. Raises UsageError where there is none."""
        if not self._path.exists():
            self.keep(list(self._found()))
        names: list[str] = json.loads(self._path.read_bytes())
        return names

    def keep(self, names: list[str]) -> None:
        """Has the list be these."""
        if not names:
            shown = shown_address(self.address)
            raise UsageError(f"there is no file *{' or *'.join(self._endings)} in {shown!r}")
        with open(self._path, "w", encoding="utf-8") as file:
            json.dump(names, file)
            file.flush()
            os.fsync(file.fileno())

    def address_of(self, name: str) -> str:
        return self.root + name

    def _found(self) -> Iterator[str]:
        address = self.address
        if has_braces(address):
            yield from self._in_braces()
        elif filesystem.is_pattern(address):
            yield from filesystem.matching(address)
        elif filesystem.is_folder(address):
            for name in filesystem.matching(self.root + "**"):
                hidden = any(part.startswith(".") for part in name.split("/"))
                if name.lower().endswith(self._endings) and not hidden:
                    yield name
        elif filesystem.exists(address):
            yield address[len(self.root) :]
        else:
            raise UsageError(f"there is no {shown_address(address)!r}")

    def _in_braces(self) -> Iterator[str]:
        for each in expanded(self.address):
            if filesystem.is_pattern(each):
                inner = filesystem.root_of(each)[len(self.root) :]
                yield from (inner + name for name in filesystem.matching(each))
            elif filesystem.is_remote(each) or filesystem.exists(each):
                yield each[len(self.root) :]
            else:
                raise UsageError(
                    f"there is no {each!r}, for which {self.address!r} stands; give a range whose "
                    "files are all there"
                )
