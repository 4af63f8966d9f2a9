"""Data sets to tokens, exactly once, on one machine or a cluster (the extra `bulk`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamenc.bulk.batchencoder import BatchEncoder, ray_encoder

# Imported on first use: `import streamenc.bulk` imports neither torch nor pyarrow.
_HOMES = {
    "BatchEncoder": ("streamenc.bulk.batchencoder", "BatchEncoder"),
    "ray_encoder": ("streamenc.bulk.batchencoder", "ray_encoder"),
}

__all__ = ["BatchEncoder", "ray_encoder"]


if not TYPE_CHECKING:  # a type checker sees the imports above, and calls any other name an error

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'streamenc.bulk' has no attribute {name!r}")
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
