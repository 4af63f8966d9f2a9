"""Frames through models: items alone, or in lanes."""
