"""Transforms without a model: resampling, cutting, gaps, sizes, clocks, selection."""
