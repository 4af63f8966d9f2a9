"""Encoders of text: a vector for each text."""
