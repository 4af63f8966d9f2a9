"""A model, a node and a source for streamenc."""
