"""Input: a data set as parts, and a part as items; what all of its kinds have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pyarrow as pa

from streamenc.bulk.items import Fault, Item


class Span(msgspec.Struct, frozen=True):
    """What becomes one shard: part of a file, in units of its kind of input.

    Attributes:
        source: A file of the input.
        start, stop: From where to where in it: lines' bytes, rows, members; -1 is its end.
        items: How many there are, where that is known; else 0.
    """

    source: str
    start: int = 0
    stop: int = -1
    items: int = 0


class Input(ABC):
    """One kind of data set. Made anew in each process, from the same address and options.

    Args:
        kept: A folder for what all processes read, such as a listing: `spans` may write there.

    Attributes:
        kind: The name of this kind, as in TokenizeJob.input_kind.
        takes: What an item holds: "audio" or "video"; a video's sound is "audio".
    """

    kind: ClassVar[str]

    def __init__(self, address: str, takes: str, kept: Path, **options: Any) -> None:
        self.address, self.takes, self.kept = address, takes, kept
        assert not options, options

    @abstractmethod
    def columns(self) -> pa.Schema:
        """What is passed through to rows. Found by a look at the beginning, the same at any time.

        Raises UsageError where `address` holds none of this kind.
        """

    @abstractmethod
    def spans(self, items_per_shard: int) -> Iterator[Span]:
        """All parts in their order, without opening any media. Always the same for the same data.

        Raises UsageError, and MediaError for a file that cannot be read.
        """

    @abstractmethod
    def items(self, span: Span) -> Iterator[Item | Fault]:
        """The items of a part, in their order; a Fault for what cannot be one."""
