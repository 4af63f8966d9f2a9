"""A look into files: what is in them, in words and as an image."""
