"""Whether what came is whole: a picture, a stream, a file."""
