"""What strangers called things and said, as it may stand on a terminal and in a log."""

from __future__ import annotations

import logging
import unicodedata
from typing import Any

FORMAT = "streamenc: %(message)s"
# Invisible, and part of how words and emoji are written: they move nothing.
_JOINERS = "\u200c\u200d"


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
