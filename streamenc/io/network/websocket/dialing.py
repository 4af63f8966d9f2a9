"""Dialer: connections to a server of streams, at one of several addresses, again and again."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import msgspec

from streamenc.addresses import shown_address
from streamenc.errors import EngineFull, StreamencError, TransportError, UsageError
from streamenc.io.network.websocket.livemessages import SUBPROTOCOL
from streamenc.io.network.wire import MAX_PACKET_BYTES

try:
    from websockets.asyncio.client import ClientConnection
    from websockets.asyncio.client import connect as _websocket
    from websockets.exceptions import (
        ConnectionClosed,
        InvalidHandshake,
        InvalidStatus,
        InvalidURI,
        NegotiationError,
    )
except ImportError as error:
    raise UsageError(f"needs the package {error.name}: pip install 'streamenc[serve]'") from None

__all__ = ["ClientConnection", "ConnectionClosed", "Dialer", "Line", "read_key", "trusting"]

logger = logging.getLogger(__name__)

SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
# The pause after the first round of addresses that failed, and the longest one, in seconds.
BACKOFF_S = (0.1, 2.0)
MAX_RETRY_AFTER_S = 60.0
MAX_KEY_BYTES = 4096
SHOWN_CHARACTERS = 200


class _Error(msgspec.Struct):
    message: str


class _Answer(msgspec.Struct):
    error: _Error


class _Connecting(_websocket):
    """Follows no redirection: another server must not learn what this one was to be told."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


@dataclass(frozen=True, slots=True)
class Line:
    """How connections are made.

    Attributes:
        key: What the server knows us by; "" for none.
        headers: Sent beside our own.
        tls: Whom to trust, for wss; None for the system's certificates.
        connect_seconds: Within which a connection must be there, and its first answer.
        silent_seconds: A connection whose other end answers no ping for so long is given up.
    """

    key: str = ""
    headers: Mapping[str, str] | None = None
    tls: ssl.SSLContext | None = None
    connect_seconds: float = 10.0
    silent_seconds: float = 15.0


def url_of(address: str, path: str) -> str:
    """`address` as a WebSocket's, with `path` where it has none. Raises UsageError."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in SCHEMES or not host or parts.username is not None:
        raise UsageError(
            f"got the address {shown_address(address)!r} of a server; wanted ws://HOST:PORT or "
            "wss://HOST:PORT; a key goes into the option for it"
        )
    where = parts.path if parts.path.strip("/") else path
    return urlunsplit((SCHEMES[parts.scheme], parts.netloc, where, parts.query, ""))


def read_key(file: str | Path) -> str:
    """The first line of a file. Raises UsageError."""
    try:
        with open(file, encoding="utf-8") as opened:
            key = opened.readline(MAX_KEY_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the key in {str(file)!r}: {error}") from None
    if not key:
        raise UsageError(f"got no key in the first line of {str(file)!r}")
    return key


def trusting(ca_file: str, insecure: bool) -> ssl.SSLContext | None:
    """Whom wss trusts; None where that is the system's certificates. Raises UsageError."""
    if not (ca_file or insecure):
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot use ca_file={ca_file!r}: {error}") from None
    if insecure:
        logger.warning("any certificate of the server is taken (insecure)")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(slots=True)
class _Failure:
    """Why a connection was not made, and how many seconds to wait where the server said so."""

    error: StreamencError
    wait_seconds: float | None = None


class Dialer:
    """Connects to the first of some addresses that answers, and goes round them from there."""

    def __init__(self, addresses: Sequence[str], path: str, line: Line) -> None:
        self._urls = [url_of(address, path) for address in addresses]
        self._line = line
        self._at = 0
        secure = any(url.startswith("wss:") for url in self._urls)
        if line.tls is not None and not secure:
            raise UsageError("got whom to trust, which is for TLS: write wss://")
        self._tls = (line.tls or ssl.create_default_context()) if secure else None

    @property
    def name(self) -> str:
        """The address that is tried next, or was reached last, for people."""
        return shown_address(self._urls[self._at])

    @property
    def alone(self) -> bool:
        return len(self._urls) == 1

    @property
    def addresses(self) -> int:
        return len(self._urls)

    def turn(self) -> None:
        """The next address is tried first."""
        self._at = (self._at + 1) % len(self._urls)

    async def dial(
        self, until: float, *, resume: bool = False, patient: bool = False
    ) -> ClientConnection:
        """A connection.

        Args:
            until: On `time.monotonic`; up to when a server that is full is asked again.
            resume: Whether a stream goes on, which a full server takes.
            patient: Also asks again where no server answers at all.

        Raises:
            EngineFull: Where all servers are full.
            UsageError: Where the key or the address is wrong.
            TransportError: Where none answers.
        """
        pause_s, longest_s = BACKOFF_S
        while True:
            failures = []
            for _ in self._urls:
                result = await self._try(resume)
                if not isinstance(result, _Failure):
                    return result
                failures.append(result)
                self.turn()
            told = [f.wait_seconds for f in failures if f.wait_seconds is not None]
            worst = failures[0].error
            if not (told or patient):
                raise worst
            wait_s = max(pause_s * random.uniform(0.5, 1.0), min(told, default=0.0))
            pause_s = min(2 * pause_s, longest_s)
            left_s = until - time.monotonic()
            if left_s <= 0 or (told and wait_s > left_s):
                raise next((f.error for f in failures if f.wait_seconds is not None), worst)
            logger.debug("no connection to %s: %s; again in %.1f s", self.name, worst, wait_s)
            await asyncio.sleep(min(wait_s, left_s))

    async def _try(self, resume: bool) -> ClientConnection | _Failure:
        """Raises StreamencError where no retry can help."""
        line, url = self._line, self._urls[self._at]
        headers = dict(line.headers or {})
        if line.key:
            headers["Authorization"] = f"Bearer {line.key}"
        if resume:
            url += ("&" if urlsplit(url).query else "?") + "resume"
        name = self.name
        try:
            return await _Connecting(
                url,
                subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]  # of a NewType of str
                additional_headers=headers,
                compression=None,
                open_timeout=line.connect_seconds,
                ping_interval=line.silent_seconds / 3,
                ping_timeout=line.silent_seconds * 2 / 3,
                close_timeout=2.0,
                max_size=MAX_PACKET_BYTES,
                ssl=self._tls if url.startswith("wss:") else None,
            )
        except InvalidURI as error:
            raise UsageError(f"cannot use the address {name}: {_plain(error)}") from None
        except InvalidStatus as error:
            return _refused(name, error)
        except ssl.SSLCertVerificationError as error:
            raise TransportError(
                f"does not trust {name}: {error.verify_message}; say which certificate to trust"
            ) from None
        except NegotiationError:
            raise TransportError(f"{name} does not speak {SUBPROTOCOL}") from None
        except TimeoutError:
            why = f"no answer within {line.connect_seconds:g} s"
        except (OSError, InvalidHandshake, EOFError) as error:
            why = _plain(error)
        return _Failure(TransportError(f"cannot connect to {name}: {why}; is a server there?"))


def _refused(name: str, error: InvalidStatus) -> _Failure:
    """Raises UsageError where no retry can help."""
    response = error.response
    status = response.status_code
    body = _said(bytes(response.body or b"")[: 4 * SHOWN_CHARACTERS])
    said = "".join(c if c.isprintable() else " " for c in body)[:SHOWN_CHARACTERS].strip()
    told = f": {said}" if said else ""
    if status in (401, 403):
        raise UsageError(f"{name} does not let us in ({status}){told}; give the right key")
    if status in (429, 503):
        return _Failure(
            EngineFull(0, f"{name} takes no more streams ({status}){told}; try later"),
            _seconds(response.headers.get("Retry-After")),
        )
    if status in (502, 504):  # of a proxy, before a server that is gone for now
        return _Failure(TransportError(f"{name} is out of reach ({status}){told}"))
    raise UsageError(
        f"{name} answers {status}{told}; wanted a server of streamenc (streamenc serve)"
    )


def _said(body: bytes) -> str:
    """The message of our servers' answers; all of another's."""
    try:
        return msgspec.json.decode(body, type=_Answer).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode(errors="replace")


def _seconds(text: str | None) -> float:
    if text is not None and text.strip().isdecimal():
        return min(float(text), MAX_RETRY_AFTER_S)
    return BACKOFF_S[1]


def _plain(error: Exception) -> str:
    """What went wrong, without the address, in which a key may stand."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    cause = error.__cause__
    return str(cause) if isinstance(cause, EOFError) else type(error).__name__
