"""Recordings as tables and as arrays."""
