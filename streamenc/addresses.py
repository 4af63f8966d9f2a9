"""Addresses for people: without the passwords, keys and tokens that stand in them.

And the secrets of addresses: where they come from, `{env:NAME}` and `{file:PATH}`, and that they
stand in no message, whoever wrote it. And strangers' words, as terminals and logs may have them.
"""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from streamenc.errors import UsageError

HIDDEN = "***"
FORMAT = "streamenc: %(message)s"
# Invisible, and part of how words and emoji are written: they move nothing.
_JOINERS = "\u200c\u200d"
# What Linux and macOS take as a path, and as one name in it.
MAX_NAME_BYTES, MAX_PART_BYTES = 4096, 255
MAX_SECRET_BYTES = 65_536
# Of less, a value is not told from a word that means something else.
LEAST_LETTERS = 4
_PLACE = re.compile(r"\{(env|file):([^{}]+)\}")
# Parameters whose values are secrets, and no words such as a user's name.
_VALUE = re.compile(r"pass|pwd|\bpw\b|psk|token|secret|sig|cred|jwt|key", re.IGNORECASE)
_secrets: set[str] = set()
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
    like a secret's. In doubt it hides more: also the host, where a password was not quoted. What is
    known to be a secret is hidden wherever it stands.
    """
    return discreet(_without_credentials(address))


def _without_credentials(address: str) -> str:
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
    """Log records without secrets, their messages as `shown_text`; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = shown_text(discreet(record.message))
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return shown_lines(discreet(super().formatException(ei)))


def log_to_stderr(level: int) -> None:
    """Has the process log to standard error, unless it logs somewhere already."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter(FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


def discreet(text: str) -> str:
    """`text` without the secrets that this process was given: "***" stands where they stood."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def remember_secret(value: str) -> None:
    """Hides `value` from now on, as `discreet` does, also as it stands in a URL or in JSON."""
    quoted = [quote(value, safe=safe, errors="surrogateescape") for safe in ("", "/")]
    forms = {value, *quoted, unquote(value)}
    forms |= {value.replace("\\", "\\\\").replace('"', '\\"')}
    _secrets.update(form for form in forms if len(form) >= LEAST_LETTERS)


def remember_secrets(address: str) -> None:
    """Hides the password of an address from now on, and the values of its secret parameters."""
    _, separator, rest = address.partition("://")
    head = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if separator and "@" in head:
        _, colon, password = head.rpartition("@")[0].partition(":")
        if colon:
            remember_secret(password)
    for found in _PARAMETER.finditer(address):
        _, name, value = found.groups()
        if len(value) > LEAST_LETTERS and _VALUE.search(name):
            remember_secret(value)


def filled_in(address: str) -> str:
    """An address as it was given, with the secrets that it only names.

    `{env:NAME}` stands for the value of an environment variable, `{file:PATH}` for the first line
    of a file. In the user, the password and the query of a URL they are quoted as a URL wants it.
    Only for what the user of a program says: what comes from elsewhere must not name what it wants
    to know. All secrets of the address are hidden from now on, as `discreet` does.

    Raises UsageError where there is no such variable or file.
    """
    if "://" in address or "?" in address:  # else it is a file's name
        plain = _PLACE.sub(lambda found: "x" * len(found[0]), address)  # a path has its own slashes
        start = plain.find("://") + 3 if "://" in plain else 0
        query = plain.find("?", start) if "?" in plain[start:] else len(plain)
        path = plain.find("/", start, query) if "/" in plain[start:query] else query
        host = plain.rfind("@", start, path)

        def put(found: re.Match[str]) -> str:
            value = _secret(*found.groups())
            quoted = found.start() < host or found.start() > query
            return quote(value, safe="", errors="surrogateescape") if quoted else value

        address = _PLACE.sub(put, address)
        remember_secrets(address)
    return address


def filled_in_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of a source or sink, with the secrets that they only name; see `filled_in`."""
    return {
        name: _PLACE.sub(lambda found: _secret(*found.groups()), value)
        if isinstance(value, str)
        else value
        for name, value in options.items()
    }


def _secret(kind: str, name: str) -> str:
    """What `{KIND:NAME}` stands for. Raises UsageError."""
    place = f"{{{kind}:{name}}}"
    if kind == "env":
        value = os.environ.get(name, "")
        if not value:
            raise UsageError(f"{place} stands for the variable {name}, which is not set, or empty")
    else:
        try:
            with Path(name).expanduser().open("rb") as file:
                line = file.readline(MAX_SECRET_BYTES)
            value = line.decode().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise UsageError(
                f"{place} stands for the first line of {name}, which cannot be read: {reason}"
            ) from None
        if not value:
            raise UsageError(f"{place} stands for the first line of {name}, which is empty")
    remember_secret(value)
    return value
