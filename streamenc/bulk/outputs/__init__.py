"""Shards of tokens, as the formats of the field."""
