"""The run folder: where the sockets of a server's processes are, for this user alone."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streamenc.errors import OutputError

PREFIX = "streamenc-serve-"
LOCK = "lock"
# Of a socket's path, less the name of the longest file in the folder.
MAX_FOLDER_BYTES = 80


@contextmanager
def run_folder() -> Iterator[Path]:
    """A new one, gone at the end; those that servers left behind that were killed go first.

    Raises:
        OutputError: Where none can be made.
    """
    places = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]
    failure = "no folder is short enough"
    for place in places:
        if not place or len(os.fsencode(place)) + len(PREFIX) + 8 > MAX_FOLDER_BYTES:
            continue
        _clear(Path(place))
        try:
            folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # mode 0700
        except OSError as error:
            failure = f"{place}: {error.strerror}"
            continue
        lock = _locked(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)
        return
    raise OutputError(f"cannot make a folder for this server's sockets ({failure}); set TMPDIR")


def _clear(place: Path) -> None:
    """Removes folders of servers that are not any more."""
    for folder in place.glob(f"{PREFIX}*"):
        with suppress(OSError):
            found = folder.lstat()
            if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
                continue
            if not (folder / LOCK).exists():
                continue  # it is being made
            lock = _locked(folder)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the folder until it is closed; None where another process does."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
