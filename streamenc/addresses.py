"""Addresses for people: without the passwords, keys and tokens that stand in them."""

from __future__ import annotations

import re

HIDDEN = "***"
# What a host can be, with its port; what stands before an "@" and is none of this is a password
# whose slashes were not quoted.
_HOST = re.compile(r"[^:]*(:\d*)?|\[[^\]]*\](:\d*)?")
_PARAMETER = re.compile(r"([?&;#])([^=&;#]*)=([^&;#]*)")
_SECRET = re.compile(
    r"pass|pwd|\bpw\b|psk|user|usr|login|token|secret|sig|auth|cred|session|\bsid\b|jwt|key|code",
    re.IGNORECASE,
)


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
