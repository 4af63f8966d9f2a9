"""Codecs of sound by causal networks: Qwen3-TTS's, MOSS', VibeVoice's."""
