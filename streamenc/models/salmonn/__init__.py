"""BEATs, and SALMONN's ears on a stream: Whisper and BEATs, fused by a Q-Former."""
