"""What the supervisor and an I/O process say to each other."""

from __future__ import annotations

from msgspec import Struct

from streamenc.serve.keyring import Key
from streamenc.serve.limits import Limits

# What the supervisor reads on standard output.
LISTENING, READY, WAITING = b"listening\n", b"ready\n", b"waiting\n"


class WorkerSetup(Struct, frozen=True, kw_only=True):
    """What an I/O process is started with.

    Attributes:
        number: Of this process, from 0.
        descriptor: Of the listening socket, which it inherits.
        engines: Their addresses.
        siblings: Paths of the sockets of all I/O processes, by their numbers.
        tally: Of the file in which they count streams of keys.
        keys: Hashes of keys; none where none is wanted.
        local: Whether only names of this machine are taken as Host.
        drain_seconds: From SIGTERM to the end.
        tls: The files of a certificate and its key.
    """

    number: int
    descriptor: int
    engines: list[str]
    siblings: list[str]
    tally: str
    limits: Limits
    store: str
    keys: list[Key]
    origins: list[str]
    local: bool
    drain_seconds: float
    tls: tuple[str, str] | None = None
    verbose: bool = False
