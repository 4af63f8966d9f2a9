"""Data sets to tokens, exactly once, on one machine or a cluster (the extra `bulk`).

A set read back:

    tokens = streamenc.bulk.open("tokens/")
    for row in tokens:
        audio = tokens.decode(row)
    loader = DataLoader(tokens.torch(shuffle=True), batch_size=None, num_workers=4)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamenc.bulk.batchencoder import BatchEncoder, ray_encoder
    from streamenc.bulk.tokendataset import TokenSet
    from streamenc.bulk.tokendataset import open_set as open

# Imported on first use: `import streamenc.bulk` imports neither torch nor pyarrow.
_HOMES = {
    "BatchEncoder": ("streamenc.bulk.batchencoder", "BatchEncoder"),
    "TokenSet": ("streamenc.bulk.tokendataset", "TokenSet"),
    "open": ("streamenc.bulk.tokendataset", "open_set"),
    "ray_encoder": ("streamenc.bulk.batchencoder", "ray_encoder"),
}

__all__ = ["BatchEncoder", "TokenSet", "open", "ray_encoder"]


if not TYPE_CHECKING:  # a type checker sees the imports above, and calls any other name an error

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'streamenc.bulk' has no attribute {name!r}")
        module, attribute = _HOMES[name]
        return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
