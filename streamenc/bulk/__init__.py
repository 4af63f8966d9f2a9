"""Data sets to tokens, exactly once, on one machine or a cluster (the extra `bulk`)."""
