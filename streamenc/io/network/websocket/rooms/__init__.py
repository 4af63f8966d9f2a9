"""Both ends of a stream in a room of a server: sinks that produce there, sources that listen."""
