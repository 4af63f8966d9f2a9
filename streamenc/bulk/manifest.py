"""Manifest: which parts of a set are finished, a line for each; and the errors of their items.

Written by one process, the one that runs the parts. A part is finished with its line: what was made
of one without, is made again. Of the machines that share a set by `--shard i/n`, each has a
manifest of its own.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from streamenc.bulk.items import Fault
from streamenc.bulk.outputs.shard import Written, sync_folder
from streamenc.errors import OutputError, UsageError
from streamenc.io.files.output import output_error

_NAME = re.compile(r"manifest(?:-\d+-of-(\d+))?\.jsonl")


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


class ItemError(msgspec.Struct, frozen=True):
    """A line of errors.jsonl: an item that is no row; see Fault.

    Attributes:
        part: That it is of.
    """

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
        elsewhere: Those that runs finished which shared the set in another number of ways.
        errors_path: Where the errors of their items are.

    Raises UsageError where another run has it, and OutputError.
    """

    def __init__(self, output: Path, share: tuple[int, int] = (0, 1)) -> None:
        suffix = "" if share[1] == 1 else f"-{share[0]:05d}-of-{share[1]:05d}"
        self.output, self._path = output, output / f"manifest{suffix}.jsonl"
        self.errors_path = output / f"errors{suffix}.jsonl"
        self._open: list[BinaryIO] = []
        try:
            self._lines = self._append_to(self._path)
            if not _lock(self._lines, fcntl.LOCK_EX):
                raise UsageError(
                    f"another run writes {str(self._path)!r}; wait for it, or give it --shard i/n "
                    "and this one another i"
                )
            self.finished = {line.part: line for line in self._whole_lines()}
            self.elsewhere = self._read_others(share[1])
            self._keep_errors()
            self._errors = self._append_to(self.errors_path)
            sync_folder(output)
        except BaseException as error:  # Ctrl-C among them: the lock is let go; passed on
            self.close()
            if isinstance(error, OSError):
                raise output_error(str(self._path), error) from error
            raise

    def add(self, line: Finished, faults: Sequence[Fault]) -> None:
        """Says that a part is finished; on disk when this returns.

        Raises OutputError; of the part is then said nothing, or half a line that counts as nothing.
        """
        errors = [ItemError(line.part, *msgspec.structs.astuple(fault)) for fault in faults]
        try:
            if errors:
                _write(self._errors, b"".join(map(_line, errors)))
            _write(self._lines, _line(line))
        except OSError as error:
            raise output_error(str(self._path), error) from error
        self.finished[line.part] = line

    def errors(self) -> Iterator[ItemError]:
        """Those of finished parts."""
        return _read_errors(self.errors_path, self.finished)

    def close(self) -> None:
        for file in self._open:
            file.close()

    def _append_to(self, path: Path) -> BinaryIO:
        # Without a buffer, which would be written once more when the file is closed.
        file: BinaryIO = open(path, "a+b", buffering=0)
        self._open.append(file)
        return file

    def _whole_lines(self) -> Iterator[Finished]:
        """Cuts a line off that a crash left half."""
        content = self._path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._lines.truncate(whole)
        yield from _read(self._path, content[:whole])

    def _read_others(self, count: int) -> dict[int, Finished]:
        """What other runs finished, less those that have other parts anyway."""
        found: dict[int, Finished] = {}
        for path in _manifests(self.output):
            if path == self._path or _count_of(path) == count:
                continue
            with open(path, "rb") as file:
                if not _lock(file, fcntl.LOCK_SH):
                    raise UsageError(
                        f"another run writes {str(path)!r}; all that share a set at one time are "
                        "given the same n in --shard i/n"
                    )
                found |= {line.part: line for line in _read(path, _whole(file.read()))}
        return found

    def _keep_errors(self) -> None:
        """Only those of finished parts: the others come again."""
        part = self.errors_path.with_suffix(".part")
        self.errors_path.touch()
        with open(part, "wb") as kept:
            kept.writelines(map(_line, self.errors()))
            kept.flush()
            os.fsync(kept.fileno())
        os.replace(part, self.errors_path)


def read_manifests(output: Path) -> dict[int, Finished]:
    """What is finished of a set, of all machines that share it. Raises OutputError."""
    found: dict[int, Finished] = {}
    for line in all_lines(output):
        if line.part in found:
            raise OutputError(f"part {line.part} of {str(output)!r} is finished twice")
        found[line.part] = line
    return dict(sorted(found.items()))


def all_lines(output: Path) -> Iterator[Finished]:
    """Of all manifests of a set, as they stand there. Raises OutputError."""
    try:
        for path in _manifests(output):
            yield from _read(path, _whole(path.read_bytes()))
    except OSError as error:
        raise OutputError(f"the manifests of {str(output)!r} cannot be read: {error}") from error


def forget_parts(output: Path, parts: Container[int]) -> int:
    """Takes parts out of all manifests, so that the next run makes them anew: their lines' number.

    Raises UsageError where a run writes the set, and OutputError.
    """
    forgotten = 0
    try:
        for path in _manifests(output):
            with open(path, "rb") as there:
                if not _lock(there, fcntl.LOCK_EX):
                    raise UsageError(f"a run writes {str(path)!r}; wait for its end")
                lines = list(_read(path, _whole(there.read())))
                kept = [line for line in lines if line.part not in parts]
                if len(kept) == len(lines):
                    continue
                forgotten += len(lines) - len(kept)
                made = path.with_suffix(".part")
                with open(made, "wb") as file:
                    file.write(b"".join(map(_line, kept)))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(made, path)
        sync_folder(output)
    except OSError as error:
        raise output_error(str(output), error) from error
    return forgotten


def read_errors(output: Path) -> Iterator[ItemError]:
    """The items of finished parts that are no rows, of all machines that share a set."""
    for path in _manifests(output):
        errors = path.with_name(path.name.replace("manifest", "errors", 1))
        if errors.exists():
            finished = {line.part for line in _read(path, _whole(path.read_bytes()))}
            yield from _read_errors(errors, finished)


def _manifests(output: Path) -> list[Path]:
    return sorted(path for path in output.iterdir() if _NAME.fullmatch(path.name))


def _count_of(path: Path) -> int:
    """Of the runs that share a set, by the name of a manifest."""
    found = _NAME.fullmatch(path.name)
    return int(found[1]) if found and found[1] else 1


def _read_errors(path: Path, finished: Container[int]) -> Iterator[ItemError]:
    """Those of finished parts, but no line that a crash left half."""
    with open(path, "rb") as file:
        for line in file:
            try:
                error = msgspec.json.decode(line, type=ItemError)
            except msgspec.MsgspecError:
                continue
            if error.part in finished and line.endswith(b"\n"):
                yield error


def _whole(content: bytes) -> bytes:
    """Without a line that is still being written."""
    return content[: content.rfind(b"\n") + 1]


def _read(path: Path, content: bytes) -> Iterator[Finished]:
    for number, line in enumerate(content.splitlines(), 1):
        try:
            yield msgspec.json.decode(line, type=Finished)
        except msgspec.MsgspecError as error:
            raise OutputError(f"{path}, line {number}: {error}") from error


def _lock(file: BinaryIO, kind: int) -> bool:
    """Whether it is ours, until the file is closed."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(file: BinaryIO, lines: bytes) -> None:
    """Onto the disk."""
    left = memoryview(lines)
    while left:
        left = left[file.write(left) :]
    os.fsync(file.fileno())


def _line(record: Any) -> bytes:
    return msgspec.json.encode(record) + b"\n"
