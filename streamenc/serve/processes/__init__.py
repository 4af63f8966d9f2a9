"""The processes of a server: the supervisor, and the I/O processes that it starts."""
