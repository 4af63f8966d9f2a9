"""Convolutions along time, with carried state."""
