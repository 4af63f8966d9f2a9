"""Live streams over WebSockets, as `streamenc serve` speaks: docs/server/protocol.md describes it."""
