"""Meter: what a server counts, for Prometheus."""

from __future__ import annotations


class Meter:
    """Counts of one I/O process."""

    def opened(self, model: str, direction: str) -> None:
        """A new stream."""

    def ended(self, model: str, direction: str, why: str) -> None:
        """A stream is gone: closed, expired, failed, ..."""

    def refused(self, why: str) -> None:
        """A request or a stream was refused: full, key, origin, ending, ..."""

    def resumed(self, source: str) -> None:
        """A stream goes on: from "memory" or "store"."""

    def dropped(self, where: str, packets: int) -> None:
        """Packets that a policy dropped, of "input" or "output"."""

    def moved(self, direction: str, nbytes: int) -> None:
        """Bytes that came "in" or went "out"."""

    def waited(self, seconds: float) -> None:
        """How long a packet of input waited before it was taken."""

    def stepped(self, model: str, seconds: float, late: bool) -> None:
        """How long a packet took from its coming to its codes; `late` if longer than it lasts."""
