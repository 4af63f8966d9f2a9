"""Encoders of streaming speech recognisers: Moonshine streaming, Voxtral Realtime, Qwen3-ASR."""
