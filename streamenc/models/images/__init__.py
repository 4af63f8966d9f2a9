"""Models of single images: one in, one out, nothing remembered."""
