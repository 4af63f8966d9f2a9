"""Guard: who may come in: keys, origins, and how many streams one key may have."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from streamenc.errors import UsageError
from streamenc.io.network.websocket.livemessages import KEY_SUBPROTOCOL
from streamenc.serve.keyring import MOST_LETTERS, Keyring

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.responses import Response
    from starlette.websockets import WebSocket

# Where the process that relayed a connection says whom it admitted; never read from a header.
ADMITTED = "streamenc.admitted"
LOCAL_NAMES = frozenset(("localhost", "127.0.0.1", "::1"))
# Of one address: wrong keys in a row, and those in a second later on.
FAILURES, FAILURES_A_SECOND = 10, 0.2
MAX_ADDRESSES = 4096


class Refused(Exception):
    """A request that is not let in: an HTTP status, a word for programs, and a sentence."""

    def __init__(
        self, status: int, code: str, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}


@dataclass(frozen=True, slots=True)
class Admission:
    """Who was let in.

    Attributes:
        owner: The name of its key; "" where none is needed.
    """

    owner: str = ""


class Guard:
    """Looks at each request before anything is done for it.

    Args:
        keys: Of which one is wanted, where there are any.
        origins: Of pages of other servers that may connect, as browsers send them
            (https://app.example), or "*" for all.
        local: Whether only names of this machine are taken as Host: else any page could make its
            own name mean this machine, and be of the same origin then.
        sessions_per_key: Streams that one key may have; 0 for any number.
        streams: How many the key of a name has now.
        clock: Seconds.

    Raises:
        UsageError: For what is no origin.
    """

    def __init__(
        self,
        keys: Keyring | None = None,
        *,
        origins: Iterable[str] = (),
        local: bool = False,
        sessions_per_key: int = 0,
        streams: Callable[[str], int] = lambda owner: 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys or Keyring()
        self._origins = frozenset(map(check_origin, origins))
        named = (urlsplit(origin).hostname or "" for origin in self._origins)
        self._names = LOCAL_NAMES.union(named) if local else None
        self._sessions_per_key, self._streams = sessions_per_key, streams
        self._failures = _Failures(clock)

    def admit(self, connection: HTTPConnection) -> Admission:
        """Raises Refused."""
        admitted: Admission | None = connection.scope.get(ADMITTED)
        if admitted is not None:
            return admitted
        self._check_host(connection)
        self._check_origin(connection)
        owner = self._owner(connection) if self._keys else ""
        if self._is_new_stream(connection):
            self.check_streams(owner)
        return Admission(owner)

    def check_streams(self, owner: str) -> None:
        """Raises Refused where this key has as many streams as it may."""
        most = self._sessions_per_key
        if owner and most and self._streams(owner) >= most:
            raise Refused(
                429,
                "full",
                f"this key has its {most} streams: close one, or wait until one ends",
                {"Retry-After": "5"},
            )

    def _check_host(self, connection: HTTPConnection) -> None:
        host = connection.headers.get("host")
        if self._names is None or host is None:  # all browsers send it
            return
        name = _name_of(host)
        if name not in self._names and not _is_loopback(name):
            raise Refused(
                403,
                "host",
                f"this server is for this machine, and was called {name[:100]!r}; call it "
                f"localhost, or start it with --origin http://{name[:100]}",
            )

    def _check_origin(self, connection: HTTPConnection) -> None:
        origin = connection.headers.get("origin")
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return
        # The scheme may differ: a proxy before us may be the one that speaks TLS.
        if _netloc_of(origin) != connection.headers.get("host", "").lower():
            raise Refused(
                403,
                "origin",
                f"pages of {origin[:100]!r} may not connect here; start the server with "
                f"--origin {origin[:100]} to let them",
            )

    def _owner(self, connection: HTTPConnection) -> str:
        key = _key_of(connection)
        owner = None if key is None else self._keys.owner(key)
        if owner is not None:
            # Also where wrong ones came from its address: a key is too long to be guessed, and
            # behind a proxy all clients have one address.
            return owner
        if key is not None:
            if wait := self._failures.wait_seconds(connection):
                raise Refused(
                    429,
                    "key",
                    "too many wrong keys came from this address",
                    {"Retry-After": str(math.ceil(wait))},
                )
            self._failures.count(connection)
        what = "a key is needed" if key is None else "this key is none of this server's"
        raise Refused(
            401,
            "key",
            f"{what}: send it as Authorization: Bearer KEY, as the subprotocol key.KEY, or as "
            "?token=KEY",
            {"WWW-Authenticate": "Bearer"},
        )

    @staticmethod
    def _is_new_stream(connection: HTTPConnection) -> bool:
        if connection.scope["type"] != "websocket":
            return False
        query = parse_qs(connection.scope["query_string"].decode("latin-1"), True)
        return "resume" not in query


class _Failures:
    """Wrong keys of each address: some at once, and then one now and then."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()  # when all of it is forgotten

    def wait_seconds(self, connection: HTTPConnection) -> float:
        over = self._free_at.get(_address(connection), 0.0) - self._clock()
        return max(0.0, over - (FAILURES - 1) / FAILURES_A_SECOND)

    def count(self, connection: HTTPConnection) -> None:
        address, now = _address(connection), self._clock()
        free_at = max(now, self._free_at.pop(address, 0.0)) + 1 / FAILURES_A_SECOND
        self._free_at[address] = free_at
        while len(self._free_at) > MAX_ADDRESSES:
            self._free_at.popitem(last=False)


def check_origin(origin: str) -> str:
    """As browsers write it. Raises UsageError."""
    origin = origin.strip().lower().rstrip("/")
    if origin in ("*", "null"):
        return origin
    try:
        url = urlsplit(origin)
        fits = bool(url.scheme and url.hostname) and origin == f"{url.scheme}://{url.netloc}"
    except ValueError:
        fits = False
    if not fits or "@" in origin:
        raise UsageError(f"origin {origin[:100]!r}: wanted https://app.example, or *")
    return origin


def answer(refused: Refused) -> Response:
    """What a client that was refused is answered, over HTTP."""
    from starlette.responses import JSONResponse

    error = {"error": {"code": refused.code, "message": refused.message}}
    return JSONResponse(error, refused.status, refused.headers)


async def turn_away(websocket: WebSocket, refused: Refused) -> None:
    """Answers an upgrade that was not accepted yet."""
    await websocket.send_denial_response(answer(refused))


def _key_of(connection: HTTPConnection) -> str | None:
    scheme, _, bearer = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and bearer.strip():
        return bearer.strip()[: MOST_LETTERS + 1]
    for offered in connection.scope.get("subprotocols", ()):
        if offered.startswith(KEY_SUBPROTOCOL):
            return str(offered)[len(KEY_SUBPROTOCOL) :][: MOST_LETTERS + 1] or None
    token = connection.query_params.get("token")
    return token[: MOST_LETTERS + 1] if token else None


def _address(connection: HTTPConnection) -> str:
    host = connection.client.host if connection.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host[:64]
    if address.version == 6:  # who has one has all of a /64
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return host


def _netloc_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.endswith(".localhost")
