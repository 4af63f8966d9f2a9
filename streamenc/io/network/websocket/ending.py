"""Why a connection ended, and whether the stream may go on over another one."""

from __future__ import annotations

from dataclasses import dataclass

from streamenc.errors import (
    EngineFull,
    InputError,
    SnapshotError,
    StreamencError,
    TransportError,
    UsageError,
)
from streamenc.io.network.websocket.livemessages import (
    EXPIRED,
    IDLE,
    OFFENDED,
    TAKEN_OVER,
    Error,
)

MAX_REASON = 300


class OpenRefused(UsageError):
    """What was asked for in `open` is not there."""


# Errors of an engine or a server that may be another one in a moment.
_PASSING = {"engine_gone", "ending", "full", "internal"}
_KINDS: dict[str, type[StreamencError]] = {
    "unknown_model": OpenRefused,
    "bad_open": OpenRefused,
    "bad_message": UsageError,
    "bad_packet": InputError,
    "bad_sequence": InputError,
    "too_big": InputError,
    "bad_snapshot": SnapshotError,
}
# Close codes after which nothing is to be had by coming again, and the error that they stand for.
_FINAL = {
    1002: "bad_message",
    1003: "bad_message",
    1007: "bad_message",
    1008: "too_slow",
    1009: "too_big",
    OFFENDED: "bad_packet",
    IDLE: "idle",
    TAKEN_OVER: "taken_over",
    EXPIRED: "expired",
}


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection ended.

    Attributes:
        code: The word of the server's error, or the one that its close code stands for; "" where
            the connection just broke.
        why: In words.
        final: Whether nothing is to be had by coming again.
    """

    code: str
    why: str
    final: bool

    def failure(self, name: str) -> StreamencError:
        """The error of a stream that ended so, at a server of this name."""
        message = f"the stream at {name} ended: {self.why}"
        if self.code == "full":
            return EngineFull(0, message)
        return _KINDS.get(self.code, TransportError)(message)


def ending_of(error: Error | None, close_code: int | None, reason: str) -> Ending:
    """What the last fatal error and the close code say together; None where there was none."""
    if error is not None:
        why = f"{printable(error.message)} ({printable(error.code)})"
        return Ending(error.code, why, error.code not in _PASSING)
    said = f": {printable(reason)}" if reason else ""
    if close_code in _FINAL:
        code = _FINAL[close_code]
        return Ending(code, f"the server closed it with {close_code} ({code}){said}", True)
    if close_code is None or close_code == 1006:
        return Ending("", "the connection broke", False)
    code = "engine_gone" if close_code == 1012 else "full" if close_code == 1013 else ""
    return Ending(code, f"the server closed it with {close_code}{said}", False)


def printable(text: str) -> str:
    """What a server said, as a terminal may show it."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON]
