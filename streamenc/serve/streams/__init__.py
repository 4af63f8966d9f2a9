"""Streams that outlive their connections: what waits, what was not acknowledged, what is kept."""
