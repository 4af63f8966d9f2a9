"""Layers over (batch, channels, time, height, width), causal along time."""
