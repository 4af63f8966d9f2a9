"""Graphs by URL and model name, in Python and from pipeline files."""
