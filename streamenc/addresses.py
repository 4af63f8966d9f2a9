"""Addresses for people, without their secrets; and strangers' words for terminals and logs."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from typing import Any

from streamenc.errors import UsageError

HIDDEN = "***"
FORMAT = "streamenc: %(message)s"
# Invisible, and part of how words and emoji are written: they move nothing.
_JOINERS = "\u200c\u200d"
# What Linux and macOS take as a path, and as one name in it.
MAX_NAME_BYTES, MAX_PART_BYTES = 4096, 255
# What a host can be, with its port; what stands before an "@" and is none of this is a password
# whose slashes were not quoted.
_HOST = re.compile(r"[^:]*(:\d*)?|\[[^\]]*\](:\d*)?")
_PARAMETER = re.compile(r"([?&;#])([^=&;#]*)=([^&;#]*)")
_SECRET = re.compile(
    r"pass|pwd|\bpw\b|psk|user|usr|login|token|secret|sig|auth|cred|session|\bsid\b|jwt|key|code",
    re.IGNORECASE,
)


def check_name(name: str) -> str:
    """`name` where an address or path can be called so.

    Raises UsageError for one that no system call takes: too long, as a whole or one name of a path,
    with a zero byte in it, or with what is no Unicode.
    """
    is_url = "://" in name
    try:
        raw = name.encode() if is_url else os.fsencode(name)
    except UnicodeEncodeError:
        raise UsageError(
            f"{shown_address(name[:40])!r} is no name: it has half of a pair"
        ) from None
    longest = 0 if is_url else max(map(len, raw.split(b"/")))
    if len(raw) >= MAX_NAME_BYTES or longest > MAX_PART_BYTES or b"\0" in raw:
        raise UsageError(
            f"{shown_address(name[:40])!r} is no name: got {len(raw)} bytes, the longest part of "
            f"the path {longest}; names have less than {MAX_NAME_BYTES} bytes, at most "
            f"{MAX_PART_BYTES} in each part, and no zero byte"
        )
    return name


def shown_address(address: str) -> str:
    """`address` as it may stand in a message, a log or a report.

    The user and the password become "***", and so do the values of parameters whose names sound
    like a secret's. In doubt it hides more: also the host, where a password was not quoted.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return _PARAMETER.sub(_hidden, address)
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in head or ("@" in rest and not _HOST.fullmatch(head)):
        before_query = rest.partition("?")[0]
        at = (before_query if "@" in before_query else rest).rindex("@")
        rest = HIDDEN + rest[at:]
    return scheme + separator + _PARAMETER.sub(_hidden, rest)


def _hidden(found: re.Match[str]) -> str:
    mark, name, value = found.groups()
    return f"{mark}{name}={HIDDEN if value and _SECRET.search(name) else value}"


def shown_text(text: str) -> str:
    """`text` with all that does more than to be read as Python writes it: escape sequences as
    `\\x1b`, line breaks as `\\n`, marks that turn the direction of what follows, halves of pairs.

    The name of a model or file, a reason that a peer gave: a terminal would obey what is in it, a
    log would have lines that nobody wrote, and half of a pair cannot even be printed.
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def shown_lines(text: str) -> str:
    """As `shown_text`; lines, which are our own, stay."""
    return "\n".join(map(shown_text, text.split("\n")))


def plain_reason(reason: str, most_bytes: int = 256) -> str:
    """`reason` printable and not long: as a peer may be told it, and a terminal show it."""
    printable = "".join(c if c.isprintable() else " " for c in reason)
    return printable.encode()[:most_bytes].decode(errors="ignore")


def _shown(character: str) -> str:
    readable = character.isprintable() or character in _JOINERS
    if readable or unicodedata.category(character) == "Zs":  # spaces that typesetters have
        return character
    return character.encode("unicode_escape").decode()


class PlainFormatter(logging.Formatter):
    """Log records with their messages as `shown_text`; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = shown_text(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return shown_lines(super().formatException(ei))


def log_to_stderr(level: int) -> None:
    """Has the process log to standard error, unless it logs somewhere already."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])
