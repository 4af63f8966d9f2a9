"""RawPeer: a ZeroMQ peer written by hand, which can say what no library would.

ZMTP 3.0 with the NULL mechanism (https://rfc.zeromq.org/spec/23/).
"""

from __future__ import annotations

import socket

MORE, LONG, COMMAND = 1, 2, 4
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)


def zmtp_frame(body: bytes, flags: int = 0) -> bytes:
    """One part of a message, or a command, as it goes over the wire."""
    if len(body) < 256:
        return bytes((flags, len(body))) + body
    return bytes((flags | LONG,)) + len(body).to_bytes(8, "big") + body


def ready(kind: str) -> bytes:
    """The command that ends the handshake, of a socket of a kind such as "SUB"."""
    named = b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind.encode()
    return zmtp_frame(b"\x05READY" + named, COMMAND)


class RawPeer:
    """Connects to a port of this machine and shakes hands, as a socket of a kind.

    Raises:
        OSError: It was thrown out before it had shaken hands.
    """

    def __init__(self, port: int, kind: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        try:
            self.socket.sendall(GREETING + ready(kind))
            got = b""
            while len(got) < len(GREETING) + 2 or len(got) < len(GREETING) + 2 + got[65]:
                if not (more := self.socket.recv(4096)):
                    raise ConnectionResetError("it hung up")
                got += more
        except OSError:
            self.socket.close()
            raise

    def send(self, *parts: bytes) -> None:
        """One message."""
        *first, last = parts
        self.socket.sendall(b"".join(zmtp_frame(part, MORE) for part in first) + zmtp_frame(last))

    def close(self) -> None:
        self.socket.close()
