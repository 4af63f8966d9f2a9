"""Attention on a stream: over a sliding window, over chunks, and the ring below both."""
