"""Item: what becomes a row of tokens, and where its bytes are; Row: that; Fault: why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
import numpy as np

from streamenc.addresses import shown_address


def printable(name: str) -> str:
    """The name of a file as text, also where its bytes are none."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


class Local(msgspec.Struct, frozen=True, tag=True):
    """A file."""

    path: str

    @property
    def name(self) -> str:
        return printable(self.path)


class Region(msgspec.Struct, frozen=True, tag=True):
    """Bytes within a file, such as a member of an archive.

    Attributes:
        path: Of a file, or a URL that fsspec opens.
        gzipped: Whether the file is to be unzipped first: `start` and `size` count what is in it.
    """

    path: str
    start: int
    size: int
    name: str
    gzipped: bool = False


class Blob(msgspec.Struct, frozen=True, tag=True):
    """Bytes in memory."""

    data: bytes
    name: str


class Remote(msgspec.Struct, frozen=True, tag=True):
    """A file elsewhere, by a URL that fsspec opens."""

    url: str

    @property
    def name(self) -> str:
        """Without passwords and tokens."""
        return shown_address(self.url)


Media: TypeAlias = Local | Region | Blob | Remote


@dataclass(frozen=True, slots=True)
class Item:
    """What becomes one row.

    Attributes:
        key: Its name, of which there is one in a set.
        media: Where its bytes are. Its `name` is for people.
        offset_seconds: Where in it the item begins.
        duration_seconds: How long it is; None for all that is left.
        channels: Which channels of sound it is of, counted from 0; () for all.
        columns: What is passed through to its row, by names of `Input.columns`.
        flags: What is known to be peculiar about it, for its row.
    """

    key: str
    media: Media
    offset_seconds: float = 0.0
    duration_seconds: float | None = None
    channels: tuple[int, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()


class Fault(msgspec.Struct, frozen=True):
    """An item that is no row.

    Attributes:
        key: Its name, or where it stands in the input if it has none.
        source: The file that it is of, for people.
        reason: Why, in words.
        error: Which kind of error, of streamenc.errors: "MediaError".
    """

    key: str
    source: str
    reason: str
    error: str = "InputError"


@dataclass(frozen=True, slots=True)
class Tokens:
    """What one model made of an item.

    Attributes:
        data: (rows, frames), or (rows, frames, height, width) of grids; rows are codebooks or bins,
            or 1 in the layout "flat".
        scales: (frames,), float32, of codes with a scale; else None.
        gaps: Which frames do not follow on from the one before them.
    """

    data: np.ndarray[Any, Any]
    scales: np.ndarray[Any, Any] | None = None
    gaps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """An item that was tokenised.

    Attributes:
        tokens: What each model made of it, in their order.
        n_samples, rate: Samples or images that were decoded, and how many there are a second.
        flags: What a reader of the set should know: "gaps", "damaged", "empty", ...
        columns: As the item's.
        verified: Whether it was encoded once more, alone and as a whole; the flag "differs" says
            that its tokens were others.
    """

    key: str
    tokens: tuple[Tokens, ...]
    n_samples: int
    rate: float
    flags: tuple[str, ...]
    columns: Mapping[str, Any]
    verified: bool = False

    @property
    def seconds(self) -> float:
        return self.n_samples / self.rate if self.rate else 0.0
