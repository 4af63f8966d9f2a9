"""`streamenc serve`: live streams, files and rooms over HTTP and WebSockets (the extra `serve`).

A supervisor keeps an engine's process for each device, and some I/O processes, none of which needs
torch: each has a Service, whose LiveStreams outlive the sockets of their clients.
"""
