"""Data sets listed in text: wav.scp, NeMo's manifests, Lhotse's cuts."""
