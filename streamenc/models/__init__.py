"""Encoders and decoders: a file, or a folder, for each family."""
