"""Instructions of encoders of speech: attention of chunks, and normalisation over time."""
