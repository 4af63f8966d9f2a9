"""Keys: read from a file or a variable, and kept as hashes only."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from msgspec import Struct

from streamenc.errors import UsageError

logger = logging.getLogger(__name__)

VARIABLE = "STREAMENC_KEYS"
LEAST_LETTERS, MOST_LETTERS = 16, 512
# What may stand in a WebSocket's subprotocol, where browsers have to put it (RFC 9110's token), and
# what Base64 has beside.
_KEY = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~/=]+")
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_SPLIT = re.compile(r"[\n,]")


class Key(Struct, frozen=True):
    """A key, of which only a hash is kept.

    Attributes:
        owner: Its name, which metrics and the store have.
        digest: SHA-256 of the key, in hexadecimal.
    """

    owner: str
    digest: str


class Keyring:
    """All keys of a server."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = [(key.owner, bytes.fromhex(key.digest)) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def owner(self, key: str) -> str | None:
        """Whose key it is; None where it is nobody's. As quick for any wrong one."""
        digest = _digest(key)
        found = None
        for owner, known in self._keys:
            if hmac.compare_digest(digest, known):
                found = owner
        return found


def read_keys(path: Path) -> list[Key]:
    """The keys of a file, one a line: `KEY`, or `NAME KEY`; `#` starts a comment.

    Raises:
        UsageError: Where it cannot be read, or holds what is no key; keys are never shown.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot read the keys of {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} holds no keys: it is not text in UTF-8") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s can be read by others than its owner: chmod 600 %s", path, path)
    keys = keys_of(text.split("\n"), str(path))
    if not keys:
        raise UsageError(f"{path} holds no key: one a line, KEY or NAME KEY")
    return keys


def keys_of_variable(value: str) -> list[Key]:
    """Those of $STREAMENC_KEYS, with commas or line breaks between them. Raises UsageError."""
    return keys_of(_SPLIT.split(value), f"${VARIABLE}")


def keys_of(lines: Iterable[str], where: str) -> list[Key]:
    """Raises UsageError, which says in which line, but not what stands there."""
    keys: dict[str, Key] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name, key = ("", *words) if len(words) == 1 else (words[0], words[1])
        wrong = ""
        if len(words) > 2:
            wrong = f"has {len(words)} words; wanted KEY, or NAME KEY"
        elif not LEAST_LETTERS <= len(key) <= MOST_LETTERS:
            wrong = f"has a key of {len(key)} letters; wanted {LEAST_LETTERS} to {MOST_LETTERS}"
        elif not _KEY.fullmatch(key):
            wrong = "has a key with letters that do not travel; wanted ASCII letters and digits"
        elif name and not _NAME.fullmatch(name):
            wrong = "has a name of other letters than A-Z, a-z, 0-9 and _.@-, or more than 64"
        if wrong:
            raise UsageError(
                f"{where}: key {number} {wrong} (python -c 'import secrets; "
                "print(secrets.token_urlsafe())' makes one)"
            )
        digest = _digest(key).hex()
        keys.setdefault(digest, Key(name or f"key-{digest[:8]}", digest))
    return list(keys.values())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
