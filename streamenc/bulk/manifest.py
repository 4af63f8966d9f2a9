"""Manifest: which parts of a set are finished, a line for each; and the errors of their items.

Written by one process, the one that runs the parts. A part is finished with its line: what was made
of one without, is made again. Of the machines that share a set by `--shard i/n`, each has a
manifest of its own.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from streamenc.bulk.items import Fault
from streamenc.bulk.outputs.shard import Written, sync_folder
from streamenc.errors import OutputError, UsageError
from streamenc.io.files.output import output_error


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A finished part.

    Attributes:
        part: Its number, by which its files are named.
        files: Of the shard: one, or several that belong together.
        source: The file of the input that it is of.
        items, errors: Rows of it, and items that are none.
        seconds: Of sound or video in all its rows.
        frames: Of tokens, of each model.
        verified, differing: Items that were encoded once more, and those whose tokens differed.
    """

    part: int
    files: tuple[Written, ...]
    source: str
    items: int
    errors: int
    seconds: float
    frames: tuple[int, ...]
    verified: int = 0
    differing: int = 0


class _Error(msgspec.Struct, frozen=True):
    part: int
    key: str
    source: str
    reason: str
    error: str


class Manifest:
    """The manifest of one run on one machine, locked while it is open.

    Args:
        output: The folder of the set.
        share: (i, n) of `--shard i/n`.

    Attributes:
        finished: Part -> its line.
        errors_path: Where the errors of their items are.

    Raises UsageError where another run has it, and OutputError.
    """

    def __init__(self, output: Path, share: tuple[int, int] = (0, 1)) -> None:
        suffix = "" if share[1] == 1 else f"-{share[0]:05d}-of-{share[1]:05d}"
        self.output, self._path = output, output / f"manifest{suffix}.jsonl"
        self.errors_path = output / f"errors{suffix}.jsonl"
        try:
            self._file = open(self._path, "a+b")
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._file.close()
                raise UsageError(
                    f"another run writes {str(self._path)!r}; wait for it, or give it --shard i/n "
                    "and this one another i"
                ) from None
            self.finished = {line.part: line for line in self._whole_lines()}
            self._keep_errors()
        except OSError as error:
            raise output_error(str(self._path), error) from error

    def add(self, line: Finished, faults: Iterable[Fault]) -> None:
        """Says that a part is finished; on disk when this returns. Raises OutputError."""
        try:
            for fault in faults:
                self._errors.write(_line(_Error(line.part, *msgspec.structs.astuple(fault))))
            self._sync(self._errors)
            self._file.write(_line(line))
            self._sync(self._file)
        except OSError as error:
            raise output_error(str(self._path), error) from error
        self.finished[line.part] = line

    def close(self) -> None:
        self._file.close()
        self._errors.close()

    def _whole_lines(self) -> Iterator[Finished]:
        """Cuts a line off that a crash left half."""
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._file.truncate(whole)
        yield from _read(self._path, content[:whole])

    def _keep_errors(self) -> None:
        """Only those of finished parts: the others come again."""
        kept = []
        if self.errors_path.exists():
            for line in self.errors_path.read_bytes().split(b"\n"):
                try:
                    error = msgspec.json.decode(line, type=_Error)
                except msgspec.MsgspecError:
                    continue  # a crash left half of it
                if error.part in self.finished:
                    kept.append(line + b"\n")
        part = self.errors_path.with_suffix(".part")
        part.write_bytes(b"".join(kept))
        os.replace(part, self.errors_path)
        self._errors = open(self.errors_path, "ab")
        sync_folder(self.output)

    @staticmethod
    def _sync(file: Any) -> None:
        file.flush()
        os.fsync(file.fileno())


def read_manifests(output: Path) -> dict[int, Finished]:
    """What is finished of a set, of all machines that share it. Raises OutputError."""
    found: dict[int, Finished] = {}
    for path in sorted(output.glob("manifest*.jsonl")):
        content = path.read_bytes()
        for line in _read(path, content[: content.rfind(b"\n") + 1]):
            if line.part in found:
                raise OutputError(f"part {line.part} of {str(output)!r} is finished twice")
            found[line.part] = line
    return dict(sorted(found.items()))


def _read(path: Path, content: bytes) -> Iterator[Finished]:
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield msgspec.json.decode(line, type=Finished)
        except msgspec.MsgspecError as error:
            raise OutputError(f"{path}, line {number}: {error}") from error


def _line(record: Any) -> bytes:
    return msgspec.json.encode(record) + b"\n"
