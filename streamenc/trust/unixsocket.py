"""Unix sockets: what is at a path before one is bound there."""

from __future__ import annotations

import os
import socket
import stat


def is_other_file(path: str) -> bool:
    """Whether something is at the path that is no socket, such as a link."""
    try:
        return not stat.S_ISSOCK(os.lstat(path).st_mode)
    except (OSError, ValueError):  # nothing is there, or can be: who uses it says so
        return False


def is_served(path: str) -> bool:
    """Whether something accepts connections at the path."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # so many connect that it is behind
            return True
        except OSError:
            return False
    return True
