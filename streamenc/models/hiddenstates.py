"""The option by which models of features say which hidden states come out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamenc.errors import UsageError
from streamenc.options import integer


def hidden_states(layer: Any, layers: Any, count: int) -> tuple[int, ...]:
    """Which hidden states come out of a network of `count` layers, of two names for one option.

    9, "6,9", [0, -1] or "all": 0 is what the first layer takes, n what layer n gives, -1 the last
    one's; None for that alone. Raises UsageError.
    """
    if layer is not None and layers is not None:
        raise UsageError("layer and layers are two names of one option; give one of them")
    wanted = layers if layer is None else layer
    if wanted is None:
        return (count,)
    if isinstance(wanted, str) and wanted == "all":
        return tuple(range(count + 1))
    parts = wanted.split(",") if isinstance(wanted, str) else wanted
    parts = list(parts) if isinstance(parts, Iterable) else [parts]
    numbers = [integer("layer", part, -count - 1, count) for part in parts]
    outputs = tuple(n % (count + 1) for n in numbers)
    if not outputs or len(set(outputs)) < len(outputs):
        raise UsageError(
            f"option 'layers' must be numbers from 0 to {count}, each once; got {wanted!r}"
        )
    return outputs
