"""Tally: how many streams each key has in all processes of a server together."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

CELL_BYTES = 4


class Tally:
    """This process's own counts, beside those of others where there are any.

    They share a file: a row for each process, which it alone writes, and a cell for each key's
    name. A row of a process that died stays until its successor clears it.

    Args:
        own: This process's row.
        rows: Processes.
        path: Of the file; None where this process is alone.
        owners: Names of keys, the same in all processes.
    """

    def __init__(
        self, own: int = 0, rows: int = 1, path: Path | None = None, owners: Sequence[str] = ()
    ) -> None:
        self._own, self._rows = own, rows
        self._columns = {owner: column for column, owner in enumerate(sorted(set(owners)))}
        self._file: int | None = None
        self._cells: memoryview[int] | None = None
        nbytes = rows * len(self._columns) * CELL_BYTES
        if path is None or rows < 2 or not nbytes:
            return
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._file).st_size < nbytes:
            os.ftruncate(self._file, nbytes)
        self._shared = mmap.mmap(self._file, nbytes)
        self._cells = memoryview(self._shared).cast("I")
        self.tell(lambda owner: 0)

    def take(self, owner: str, mine: int, most: int) -> bool:
        """Whether one more stream of a key fits: `mine` are there in this process already."""
        column = self._columns.get(owner)
        if self._cells is None or column is None:
            return mine < most
        with self._locked() as cells:
            others = sum(
                cells[row * len(self._columns) + column]
                for row in range(self._rows)
                if row != self._own
            )
            fits = mine + others < most
            cells[self._own * len(self._columns) + column] = mine + fits
        return fits

    def total(self, owner: str, mine: int) -> int:
        """Streams of a key in all processes."""
        column = self._columns.get(owner)
        if self._cells is None or column is None:
            return mine
        rows = range(self._rows)
        return mine + sum(
            self._cells[row * len(self._columns) + column] for row in rows if row != self._own
        )

    def tell(self, count: Callable[[str], int]) -> None:
        """Writes what this process has now, for the others."""
        if self._cells is None:
            return
        with self._locked() as cells:
            for owner, column in self._columns.items():
                cells[self._own * len(self._columns) + column] = count(owner)

    def close(self) -> None:
        """May be called twice."""
        if self._cells is not None and self._file is not None:
            self._cells.release()
            self._cells = None
            self._shared.close()
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _locked(self) -> Iterator[memoryview[int]]:
        """For some microseconds, in which other processes wait."""
        assert self._file is not None and self._cells is not None
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield self._cells
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
