"""Who is at the other end of a ZeroMQ socket: doors, keys, files, and how long it is waited for."""
