"""SocketFile: a Unix socket at a path, which never takes the place of anything else there."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress

from streamenc.errors import TransportError
from streamenc.trust.unixsocket import is_other_file, is_served

MAX_PATH_BYTES = 108  # sockaddr_un's
BACKLOG = 100


class SocketFile:
    """Binds a socket of a path, for its owner alone; ZeroMQ itself would replace a regular file.

    fd  The bound socket, to be closed by whoever takes it.

    Raises:
        TransportError: Something else is at the path, also a link to something; or a socket that
            is served; or the folder is not there, or not ours to write to.
    """

    def __init__(self, address: str, path: str) -> None:
        self._path = path
        try:
            # Two that start at once would both find a socket that nobody serves, and unlink it.
            folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise _failed(address, _reason(error)) from None
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            check_no_other_file(address, path, "bind")
            if is_served(path):
                raise TransportError(
                    f"cannot bind {address}: Address already in use; stop what uses it, or take "
                    "another path"
                )
            self.fd = _bound(address, path)
            self._made = _identity(path)
        finally:
            os.close(folder)

    def remove(self) -> None:
        """Removes the file, where it is still this socket's; may be called twice."""
        with suppress(OSError):
            if _identity(self._path) == self._made:
                os.unlink(self._path)


def check_no_other_file(address: str, path: str, verb: str) -> None:
    """Raises TransportError where something is at the path that is no socket."""
    if is_other_file(path):
        raise TransportError(
            f"cannot {verb} {address}: {path} is there and is no socket; take another path"
        )


def _identity(path: str) -> tuple[int, ...]:
    """What no other file has, also where the system gives a number of one that is gone again."""
    status = os.lstat(path)
    return status.st_dev, status.st_ino, status.st_mode, status.st_ctime_ns


def _bound(address: str, path: str) -> int:
    with socket.socket(socket.AF_UNIX) as listening:
        with suppress(OSError):  # where the system has no modes of sockets without a name
            os.fchmod(listening.fileno(), 0o600)
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
            listening.bind(path)
            os.chmod(path, 0o600)
            listening.listen(BACKLOG)
        except (OSError, ValueError) as error:
            raise _failed(address, _reason(error)) from None
        return listening.detach()


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _failed(address: str, reason: str) -> TransportError:
    return TransportError(
        f"cannot bind {address}: {reason}; its folder must be there and yours to write to, and the "
        f"path shorter than {MAX_PATH_BYTES} bytes"
    )
