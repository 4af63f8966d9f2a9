"""Layers over (batch, time, channels, height, width), causal along time."""
