"""Lists of items, one a line: wav.scp, JSON lines of NeMo and of Lhotse."""
