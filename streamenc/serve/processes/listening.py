"""The address that a server is bound to: read, checked and bound, once for all its processes."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass

from streamenc.errors import TransportError, UsageError

PORT = 8765
BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Bind:
    """HOST:PORT, of `--bind`.

    Attributes:
        host: A name, an address, or "" for all of this machine.
        loopback: Whether only this machine can connect.
    """

    host: str
    port: int
    loopback: bool

    @classmethod
    def read(cls, text: str) -> Bind:
        """Raises UsageError."""
        host, colon, port = text.strip().rpartition(":")
        if not colon or port.endswith("]"):
            host, port = text.strip(), str(PORT)
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        if not port.isdecimal() or not 0 <= int(port) < 65536 or (":" in host and not bracketed):
            raise UsageError(f"--bind {text}: wanted HOST:PORT, as 127.0.0.1:{PORT}, [::1]:{PORT}")
        host = "" if host == "*" else host
        with suppress(ValueError):
            return cls(host, int(port), ipaddress.ip_address(host).is_loopback)
        return cls(host, int(port), host == "localhost")

    def listen(self) -> socket.socket:
        """Raises TransportError where it is not to be had."""
        shown = f"{self.host or '*'}:{self.port}"
        try:
            found = socket.getaddrinfo(
                self.host or "0.0.0.0",
                self.port,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
                # Of names that mean both, the one that everybody tries.
                family=socket.AF_INET if self.host == "localhost" else socket.AF_UNSPEC,
            )
        except OSError as error:
            raise TransportError(f"cannot bind {shown}: {error.strerror or error}") from None
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            raise TransportError(
                f"cannot bind {shown}: {error.strerror}; stop what is there, or take another "
                "address with --bind"
            ) from None
        listening.setblocking(False)
        return listening

    def url(self, bound: socket.socket, tls: bool) -> str:
        """By which people reach it."""
        host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if tls else 'http'}://{host}:{bound.getsockname()[1]}"
