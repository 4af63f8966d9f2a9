"""Live streams over WebSockets, as `streamenc serve` speaks: docs/server describes it."""
