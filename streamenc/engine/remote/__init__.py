"""An engine in a process of its own, and its sessions in others, over ZeroMQ."""
