"""What becomes of a decoded image: its colours, its shape, and which way up it is."""
