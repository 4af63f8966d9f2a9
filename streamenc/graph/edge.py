"""Edge: how an edge of the graph is asked to be; ChannelStatistics: what it has counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from streamenc.errors import FitError, UsageError
from streamenc.options import written

Policy = Literal["block", "drop_oldest", "latest"]
DEFAULT_CAPACITY = 4
LEAST_MS, MAX_MS = 1e-6, 1e12  # a nanosecond; thirty years


@dataclass(frozen=True, slots=True)
class Edge:
    """How the edge in front of a node is asked to be; see Channel.

    if_live     `policy` and `capacity` are for what turns out to be live; behind what waits, the
                edge waits, too.
    needs_live  Why there can be no edge behind what waits; "" where there can.
    """

    capacity: int = DEFAULT_CAPACITY
    policy: Policy = "block"
    max_age_ms: float | None = None
    if_live: bool = False
    needs_live: str = ""

    def check(self, where: str) -> None:
        """Raises UsageError, which names `where`, for what no edge can be."""
        if self.policy not in get_args(Policy):
            known = ", ".join(get_args(Policy))
            raise UsageError(f"{where} got policy {self.policy!r}; known are {known}")
        if not isinstance(self.capacity, int) or self.capacity < 1:
            raise UsageError(f"{where} got capacity {self.capacity!r}; it takes 1 frame or more")
        check_max_age(where, self.max_age_ms)

    def behind(self, live: bool, max_age_ms: float | None) -> Edge:
        """As it is behind what is live, with the graph's `max_age_ms` unless it has its own.

        Raises FitError where it may drop but a source behind it would lose nothing by waiting.
        """
        if live:
            return self if self.max_age_ms is not None else replace(self, max_age_ms=max_age_ms)
        if self.needs_live:
            raise FitError(self.needs_live)
        if self.if_live:
            return replace(self, policy="block", capacity=DEFAULT_CAPACITY)
        if self.policy != "block":
            raise FitError(
                f'policy "{self.policy}" may lose frames of a source that would wait; '
                'behind anything but live sources use "block"'
            )
        if self.max_age_ms is not None:
            raise FitError(
                f"max_age_ms={self.max_age_ms:g} may lose frames of a source that would wait; "
                "it is for what comes behind live sources, or files that are paced"
            )
        return self


def check_ms(where: str, name: str, value: float | None, low: float = LEAST_MS) -> None:
    """Raises UsageError for what is no length of time that a graph waits; None is one."""
    if value is not None and not low <= value <= MAX_MS:
        least = "0 or more" if not low else "above 0"
        raise UsageError(
            f"{where} got {name}={written(value)}; wanted a finite number of ms, {least}, up to "
            f"{MAX_MS:g}, or None"
        )


def check_max_age(where: str, max_age_ms: float | None) -> None:
    """Raises UsageError for what is no length of time."""
    check_ms(where, "max_age_ms", max_age_ms)


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Counts in frames; `sent == received + dropped + in_flight` holds at every instant.

    Attributes:
        sent: Accepted from the sender.
        received: Handed to the receiver.
        dropped: Given up by the policy, or for their age.
        in_flight: Waiting in the channel, or left behind when the receiver closed.
        high_water: The most that ever waited.
        max_age_ms: The age beyond which frames are dropped; None where they may be of any.
        expired: Those of `dropped` that were given up for that.
    """

    name: str
    policy: Policy
    capacity: int
    sent: int
    received: int
    dropped: int
    in_flight: int
    high_water: int
    max_age_ms: float | None = None
    expired: int = 0
