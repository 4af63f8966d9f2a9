"""How columns of an input are named in a set, which has columns of its own."""

from __future__ import annotations

# By schema_of in outputs, and by what a set's models make.
OWN = frozenset(("key", "codes", "features", "n_samples", "rate", "seconds", "flags", "scales"))
_ENDS = ("_codes", "_features", "_scales")


def passed_as(name: str) -> str:
    """The name of a column, in front of which stands `input_` where a set needs it for itself."""
    return f"input_{name}" if name in OWN or name.endswith(_ENDS) else name
