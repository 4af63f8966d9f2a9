"""How much of a test is run: STREAMENC_TESTS is `fast`, what a commit needs, or `full`.

Nothing is less strict in `fast`: it has fewer random examples of a property, and leaves out what is
marked `slow`, of which something smaller is always run.
"""

from __future__ import annotations

import os

PROFILE = os.environ.get("STREAMENC_TESTS", "fast")
if PROFILE not in ("fast", "full"):
    raise ValueError(f"STREAMENC_TESTS is {PROFILE!r}; wanted fast or full")
FULL = PROFILE == "full"


def examples(full: int, *, fast: int) -> int:
    """How many random examples the running profile has."""
    return full if FULL else fast
