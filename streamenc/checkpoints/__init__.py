"""Weights: found, fetched, opened and checked one by one; none of it is ever run."""
