"""Listener: whom those who do parts tell of it."""

from __future__ import annotations

from typing import Protocol

from streamenc.bulk.partwork import Done, Progress


class Listener(Protocol):
    """What it raises ends their work."""

    def told(self, progress: Progress) -> None:
        """Now and then."""

    def finished(self, done: Done) -> None:
        """A shard has its name."""

    def lost(self, part: int) -> None:
        """Who did a part is gone, and it is begun anew."""

    def memory(self, peak_bytes: int) -> None:
        """How much a process had at most."""

    def look(self) -> None:
        """Several times a second."""
