"""streamenc: exact streaming encoders on a live graph.

A stream, chunk by chunk:

    codec = streamenc.load("kyutai/mimi")
    with codec.stream() as stream:
        for chunk in chunks:
            codes = stream.push(chunk)
        codes = stream.flush()

What was recorded, and what is being sent:

    recording = streamenc.read("tokens.arrows")
    for codes, seconds, gap in streamenc.subscribe("zmq+tcp://127.0.0.1:5555"):
        ...
"""

from __future__ import annotations

from importlib import import_module

from streamenc.trust.telemetry import telemetry_off

# As type checkers know it. Without `typing`, the command line hears of Ctrl-C the sooner.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.engine.engine import Engine
    from streamenc.engine.remote.engineserver import EngineServer
    from streamenc.engine.remote.remoteengine import RemoteEngine
    from streamenc.engine.session import Session
    from streamenc.errors import (
        CannotLower,
        CheckpointError,
        ContractError,
        DeviceError,
        EngineFull,
        ExportError,
        FitError,
        InputError,
        MediaError,
        NodeError,
        OutputError,
        SnapshotError,
        StreamencError,
        TransportError,
        UsageError,
        WireError,
    )
    from streamenc.graph.frames import Frame, StreamInfo
    from streamenc.graph.graph import Graph
    from streamenc.graph.node import Sink, Source, Transform
    from streamenc.io.files.tables.stacked import Recording, Track
    from streamenc.io.reading import read
    from streamenc.io.subscription import Piece, Subscription, subscribe
    from streamenc.models.signal import Scaled
    from streamenc.pipeline.builder import Pipeline
    from streamenc.plugins import register
    from streamenc.registry import load
    from streamenc.stream import Stream

    __version__: str

telemetry_off()

# Imported on first use: `import streamenc` imports neither torch nor numpy.
_HOMES = {
    "CannotLower": "streamenc.errors",
    "CheckpointError": "streamenc.errors",
    "Codec": "streamenc.codec",
    "ContractError": "streamenc.errors",
    "DeviceError": "streamenc.errors",
    "Engine": "streamenc.engine.engine",
    "EngineFull": "streamenc.errors",
    "EngineServer": "streamenc.engine.remote.engineserver",
    "FitError": "streamenc.errors",
    "Frame": "streamenc.graph.frames",
    "Graph": "streamenc.graph.graph",
    "InputError": "streamenc.errors",
    "MediaError": "streamenc.errors",
    "NodeError": "streamenc.errors",
    "OutputError": "streamenc.errors",
    "Piece": "streamenc.io.subscription",
    "Pipeline": "streamenc.pipeline.builder",
    "Recording": "streamenc.io.files.tables.stacked",
    "RemoteEngine": "streamenc.engine.remote.remoteengine",
    "Scaled": "streamenc.models.signal",
    "Session": "streamenc.engine.session",
    "Sink": "streamenc.graph.node",
    "SnapshotError": "streamenc.errors",
    "Source": "streamenc.graph.node",
    "ExportError": "streamenc.errors",
    "Stream": "streamenc.stream",
    "StreamInfo": "streamenc.graph.frames",
    "StreamencError": "streamenc.errors",
    "Subscription": "streamenc.io.subscription",
    "Track": "streamenc.io.files.tables.stacked",
    "Transform": "streamenc.graph.node",
    "TransportError": "streamenc.errors",
    "UsageError": "streamenc.errors",
    "WireError": "streamenc.errors",
    "load": "streamenc.registry",
    "read": "streamenc.io.reading",
    "register": "streamenc.plugins",
    "subscribe": "streamenc.io.subscription",
}

__all__ = [
    "CannotLower",
    "CheckpointError",
    "Codec",
    "ContractError",
    "DeviceError",
    "Engine",
    "EngineFull",
    "EngineServer",
    "FitError",
    "Frame",
    "Graph",
    "InputError",
    "MediaError",
    "NodeError",
    "OutputError",
    "Piece",
    "Pipeline",
    "Recording",
    "RemoteEngine",
    "Scaled",
    "Session",
    "Sink",
    "SnapshotError",
    "Source",
    "ExportError",
    "Stream",
    "StreamInfo",
    "StreamencError",
    "Subscription",
    "Track",
    "Transform",
    "TransportError",
    "UsageError",
    "WireError",
    "__version__",
    "load",
    "read",
    "register",
    "subscribe",
]


if not TYPE_CHECKING:  # a type checker sees the imports above, and calls any other name an error

    def __getattr__(name: str) -> object:
        if name == "__version__":
            return _version()
        if name not in _HOMES:
            raise AttributeError(f"module 'streamenc' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def _version() -> str:
    # Imported here, as it takes as long as all else that comes with `import streamenc`.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("streamenc")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted(__all__)
