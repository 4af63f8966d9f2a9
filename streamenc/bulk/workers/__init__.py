"""Processes that do the parts of a job, and how a run is ended."""
