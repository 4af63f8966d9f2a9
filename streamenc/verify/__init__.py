"""Verify: streamenc beside the published implementations, on the weights that are published."""
