"""Rows of a finished set: their order, their shards, and what they are decoded to."""
