"""Whisper's encoder on a stream."""
