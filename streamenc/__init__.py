"""streamenc: exact streaming encoders on a live graph.

codec = streamenc.load("kyutai/mimi")
with codec.stream() as stream:
    for chunk in chunks:
        codes = stream.push(chunk)
    codes = stream.flush()
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.graph.frames import Frame, StreamInfo
    from streamenc.graph.graph import Graph
    from streamenc.registry import load
    from streamenc.stream import Stream

try:
    __version__ = version("streamenc")
except PackageNotFoundError:
    __version__ = "0+unknown"

# Imported on first use: `import streamenc` does not import torch.
_HOMES = {
    "Codec": "streamenc.codec",
    "Frame": "streamenc.graph.frames",
    "Graph": "streamenc.graph.graph",
    "Stream": "streamenc.stream",
    "StreamInfo": "streamenc.graph.frames",
    "load": "streamenc.registry",
}

__all__ = ["Codec", "Frame", "Graph", "Stream", "StreamInfo", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'streamenc' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
