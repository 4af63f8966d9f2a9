"""Live streams over WebSockets, as `streamenc serve` speaks: docs/serve.md describes it."""
