"""The address of an engine: what it may be, and what must not happen to what is there."""

from __future__ import annotations

import fcntl
import os
import socket
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import zmq

from streamenc.errors import TransportError, UsageError
from streamenc.trust.unixsocket import is_other_file, is_served

MAX_PATH_BYTES = 107  # of sockaddr_un, without the zero behind it
LOOPBACK = ("127.0.0.1", "[::1]")


class Endpoint:
    """`ipc:///path` or `tcp://127.0.0.1:port`; of the former `path` is not "".

    Raises:
        UsageError: For any other address. An engine has no keys and no encryption, so that it
            listens on its own machine only.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.path = ""
        self._lock: int | None = None
        scheme, _, rest = address.partition("://")
        if scheme == "ipc":
            # "@" would be a name that no permissions guard, and "*" one that nobody knows.
            if not rest.startswith("/") or "\0" in rest:
                raise UsageError(f"address {address!r}: wanted ipc:///path, from the root on")
            if len(os.fsencode(rest)) > MAX_PATH_BYTES:
                raise UsageError(
                    f"address {address!r}: a socket's path has at most {MAX_PATH_BYTES} bytes; "
                    "take a shorter one"
                )
            self.path = rest
            return
        try:
            url = urlsplit(address)
            host, port = url.netloc.rpartition(":")[0], url.port
        except ValueError as error:
            raise UsageError(f"address {address!r}: {error}") from None
        host = "127.0.0.1" if host == "localhost" else host
        if scheme != "tcp" or port is None or url.path or url.query:
            raise UsageError(f"address {address!r}: wanted ipc:///path or tcp://127.0.0.1:port")
        if host not in LOOPBACK:
            raise UsageError(
                f"address {address!r}: an engine has no keys, so it listens on this machine only: "
                "wanted ipc:///path or tcp://127.0.0.1:port; to reach it from another, forward the "
                "port (ssh -L)"
            )
        self.address = f"tcp://{host}:{port}"

    def bind(self, socket: Any) -> str:
        """Binds; a socket's file is for its owner alone. Gives the address with its port.

        Raises:
            TransportError: Where a file is there that is no socket, where another engine is, or
                where it cannot be bound.
        """
        socket.set(zmq.IPV6, int("[" in self.address))
        if not self.path:
            return self._bound(socket)
        self._check_no_other_file()
        self._take()
        # ZeroMQ makes the file; between that and a change of its mode others could connect.
        usual = os.umask(0o177)
        try:
            return self._bound(socket)
        except TransportError:
            self.release()
            raise
        finally:
            os.umask(usual)

    def connect(self, socket: Any) -> None:
        """Raises TransportError where nothing can be at the address."""
        socket.set(zmq.IPV6, int("[" in self.address))
        if self.path:
            self._check_no_other_file()
        if not (is_served(self.path) if self.path else _has_listener(self.address)):
            raise TransportError(
                f"no engine is at {self.address}: start one (streamenc engine {self.address} -m "
                f"MODEL), or check the {'path' if self.path else 'port'}"
            )
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            raise TransportError(f"cannot connect to {self.address}: {error}") from None

    def release(self) -> None:
        """Lets others bind, after the socket was closed; may be called twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            for path in (self.path, self._lock_path):
                with suppress(FileNotFoundError):
                    os.unlink(path)
            os.close(lock)

    @property
    def _lock_path(self) -> str:
        return f"{self.path}.streamenc-lock"

    def _take(self) -> None:
        """Who has the lock has the path: two engines that start at once would both find it free."""
        while True:
            try:
                lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise TransportError(
                    f"cannot bind {self.address}: {error.strerror}; its folder must be there and "
                    "yours to write to"
                ) from None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                there = os.stat(self._lock_path).st_ino
            except FileNotFoundError:  # who had it took it away in this moment
                os.close(lock)
                continue
            except OSError:
                os.close(lock)
                raise self._in_use() from None
            if there != os.fstat(lock).st_ino:
                os.close(lock)
                continue
            self._lock = lock
            if is_served(self.path):  # by what knows nothing of the lock
                os.close(lock)
                self._lock = None
                raise self._in_use()
            return

    def _in_use(self) -> TransportError:
        return TransportError(
            f"an engine is at {self.address} already: use that one, stop it, or take another "
            f"{'path' if self.path else 'port'}"
        )

    def _bound(self, socket: Any) -> str:
        try:
            socket.bind(self.address)
        except zmq.ZMQError as error:
            if error.errno == zmq.EADDRINUSE:
                raise self._in_use() from None
            raise TransportError(
                f"cannot bind {self.address}: {zmq.strerror(error.errno or 0)}; check the address"
            ) from None
        bound: str = socket.get(zmq.LAST_ENDPOINT).decode().rstrip("\0")
        return bound

    def _check_no_other_file(self) -> None:
        """ZeroMQ would replace even a regular file."""
        if is_other_file(self.path):
            raise TransportError(
                f"{self.path} is there and is no socket: it is left as it is; take another path"
            )


def _has_listener(address: str) -> bool:
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
    except OSError:
        return False
    return True
