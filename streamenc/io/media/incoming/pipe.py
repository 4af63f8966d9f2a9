"""Bytes of standard input, a named pipe or a file: looked at first, then read, and stoppable."""

from __future__ import annotations

import os
import select
import stat
import sys
import threading
import time

from streamenc.errors import MediaError
from streamenc.io.media.incoming.formats import undecided

WAIT_SECONDS = 0.1
# How long the first bytes may be too few to tell what they are.
LOOK_SECONDS = 0.5
READ_BYTES = 65_536
HEAD_BYTES = 512
MAX_AHEAD_BYTES = 2**20


class Pipe:
    """A file for PyAV, which can look ahead at its beginning.

    Nothing waits for longer than 0.1 s once `halt` is set: then a pipe has ended.

    name      "-" is standard input.
    terminal  Whether standard input may be one, at which somebody types.
    head      The first bytes, also after they were read.

    Raises MediaError where it cannot be opened.
    """

    def __init__(self, name: str, halt: threading.Event, *, terminal: bool = False) -> None:
        self.name = name
        self._terminal = terminal
        self.ended = False  # all that there will be was read, or given up
        self.head = b""
        self._halt = halt
        self._ahead = bytearray()
        self._lock = threading.Lock()  # a thread may still wait when another one closes
        try:
            self._fd: int | None = self._open()
        except OSError as error:
            raise MediaError(f"cannot open {name!r}: {error.strerror or error}") from error
        # A file that stands on standard input (`< talk.wav`) is all there.
        self.regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._begin = os.lseek(self._fd, 0, os.SEEK_CUR) if self.regular else 0

    def look(self) -> bytes:
        """The first bytes, as many as it takes to tell what they are; `read` gives them again.

        Waits for the first one, then at most half a second.
        """
        head, end = self.peek(1), time.monotonic() + LOOK_SECONDS
        while undecided(head) and not self.ended and (left := end - time.monotonic()) > 0:
            head = self.peek(len(head) + 1, left)
        return head

    def peek(self, size: int, timeout_seconds: float | None = None) -> bytes:
        """What comes next, at least `size` bytes but at the end and after the time that it has."""
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while len(self._ahead) < size and not self.ended:
            if not self._fill() and end is not None and time.monotonic() > end:
                break
        return bytes(self._ahead)

    def peek_at(self, offset: int, size: int) -> bytes:
        """The same at `offset` from what comes next; nothing beyond 1 MiB."""
        end = min(offset + size, MAX_AHEAD_BYTES)
        return self.peek(end)[offset:end]

    def skip(self, size: int) -> None:
        """Leaves out what comes next, as if the file began behind it."""
        self.peek(size)
        self.take(size)
        self._begin += size

    def read(self, size: int = READ_BYTES) -> bytes:
        """At least one byte; b"" at the end. Raises MediaError where reading fails."""
        while not self._ahead and not self.ended:
            self._fill()
        return self.take(size)

    def take(self, size: int) -> bytes:
        """Up to `size` of the bytes that were looked at, without waiting for more."""
        got = bytes(self._ahead[:size])
        del self._ahead[:size]
        return got

    def seekable(self) -> bool:
        return self.regular

    def seek(self, to: int, whence: int = os.SEEK_SET) -> int:
        """As a file's, from where it stood at first."""
        assert self._fd is not None
        if whence == os.SEEK_CUR:
            to, whence = self.tell() + to, os.SEEK_SET
        self._ahead.clear()
        self.ended = False
        return os.lseek(self._fd, to + (self._begin if not whence else 0), whence) - self._begin

    def tell(self) -> int:
        assert self._fd is not None
        return os.lseek(self._fd, 0, os.SEEK_CUR) - len(self._ahead) - self._begin

    def close(self) -> None:
        """May be called twice."""
        self.ended = True
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _fill(self) -> bool:
        """Reads on where there is something; False where that did not come within 0.1 s."""
        with self._lock:
            if self._fd is None or self._halt.is_set():
                self.ended = True
                return True
            if not self._ready(self._fd):
                return False
            try:
                got = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                return False
            except OSError as error:
                raise MediaError(f"cannot read {self.name!r}: {error.strerror}") from error
        if len(self.head) < HEAD_BYTES:
            self.head = (self.head + got)[:HEAD_BYTES]
        self._ahead += got
        self.ended = not got
        return True

    def _open(self) -> int:
        if self.name == "-":
            if sys.stdin.isatty() and not self._terminal:
                raise MediaError("standard input is a terminal; pipe sound or a file into it")
            return os.dup(sys.stdin.fileno())
        if os.path.isdir(self.name):
            raise MediaError(f"{self.name!r} is a folder; name a file in it")
        # Without O_NONBLOCK, opening a named pipe waits for its writer and cannot be stopped.
        return os.open(self.name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))

    @staticmethod
    def _ready(fd: int) -> bool:
        """Whether there is something to read now (the end counts)."""
        if not hasattr(select, "poll"):
            return True
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(1000 * WAIT_SECONDS))


def is_pipe(name: str) -> bool:
    """Whether it is standard input or a named pipe."""
    try:
        return name == "-" or stat.S_ISFIFO(os.stat(name).st_mode)
    except (OSError, ValueError):
        return False
