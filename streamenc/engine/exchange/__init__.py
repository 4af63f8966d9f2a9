"""What goes into an engine and comes out: batches of chunks, staged, and outputs of arrays."""
