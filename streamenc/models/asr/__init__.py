"""Encoders of streaming speech recognisers."""
