"""Measurements on a CPU, beside the published implementations."""
