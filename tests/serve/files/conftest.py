"""What answers over HTTP, called without sockets."""

from __future__ import annotations

from tests.serve.httpsite import address, visit

__all__ = ["address", "visit"]
