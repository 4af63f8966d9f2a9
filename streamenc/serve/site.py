"""Site: what the routes of a server share."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamenc.serve.guard import Guard
from streamenc.serve.meter import Meter
from streamenc.serve.relay import Relay
from streamenc.serve.service import Service


@dataclass(frozen=True, slots=True)
class Site:
    """Handed to each module's `routes(site)`, which gives its Starlette routes."""

    service: Service
    guard: Guard = field(default_factory=Guard)
    meter: Meter = field(default_factory=Meter)
    relay: Relay = field(default_factory=Relay)
