"""ChannelStatistics: what an edge of the graph has counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Policy = Literal["block", "drop_oldest", "latest"]


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Counts in frames; `sent == received + dropped + in_flight` holds at every instant.

    Attributes:
        sent: Accepted from the sender.
        received: Handed to the receiver.
        dropped: Given up by the policy.
        in_flight: Waiting in the channel, or left behind when the receiver closed.
        high_water: The most that ever waited.
    """

    name: str
    policy: Policy
    capacity: int
    sent: int
    received: int
    dropped: int
    in_flight: int
    high_water: int
