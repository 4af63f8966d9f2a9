"""Rooms: one produces a stream, many listen, each with a bound of its own."""
