"""Everything that streamenc raises on purpose.

    StreamencError
    ├── InputError        the caller's data: a wrong shape, rate, dtype, or non-finite samples
    ├── UsageError        an unknown scheme, model, option or device name; a missing extra
    │   └── EngineFull    as many sessions are open as the engine takes
    ├── FitError          two nodes of a graph do not fit; raised when the graph is built
    ├── CheckpointError   weights that are missing, truncated, foreign or of another shape
    ├── ExportError       a step that cannot be exported, or that computes something else in ONNX
    ├── CannotLower       a layer or model whose step cannot be compiled
    ├── SnapshotError     a snapshot of another model, another version, or not a snapshot at all
    ├── MediaError        a file or stream that cannot be opened, read or decoded
    │   └── WireError     a packet that is malformed, too large or of an unknown version
    ├── OutputError       a file that cannot be written (a full disk, a missing folder)
    ├── TransportError    a port in use, a broker out of reach, a peer that went away
    ├── DeviceError       no such sound device or camera, or one that was unplugged
    ├── NodeError         a node failed while the graph ran: `node` is its name
    └── ContractError     a model that does not keep what its spec promises; see streamenc.testing

Each message says what came, what was wanted and what to do about it.
"""

from __future__ import annotations

_LONGEST_MESSAGE = 1500


class StreamencError(Exception):
    """The root of the tree: `except StreamencError` catches all that is raised on purpose."""


class InputError(StreamencError, ValueError):
    """The caller's data does not fit: a wrong shape, rate, dtype, or non-finite samples."""


class UsageError(StreamencError, ValueError):
    """An unknown scheme, model, option or device name, or an extra that is not installed."""


class EngineFull(UsageError):
    """As many sessions are open as the engine takes: `max_sessions`; 0 where that is not known."""

    def __init__(self, max_sessions: int, message: str = "") -> None:
        super().__init__(
            message
            or f"all {max_sessions} sessions of this engine are open; close one, wait until one "
            "ends, or open the engine with a higher max_sessions"
        )
        self.max_sessions = max_sessions


class FitError(StreamencError):
    """Two nodes of a graph do not fit together; raised when the graph is built."""


class CheckpointError(StreamencError):
    """Weights that are missing, truncated, of another model, or of another shape.

    Its message says what a stranger's file holds: unprintable characters are question marks in it,
    and what would be a page keeps its begin and its end.
    """

    def __init__(self, message: str = "") -> None:
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[: _LONGEST_MESSAGE - 400]} ... {message[-400:]}"
        super().__init__("".join(c if c.isprintable() or c == "\n" else "?" for c in message))


class ExportError(StreamencError):
    """A step that cannot be exported, or whose export is not what torch computes."""


class CannotLower(StreamencError):
    """A layer or model that has no instructions for its step: it runs in torch."""


class SnapshotError(StreamencError):
    """A snapshot of another model or version, or bytes that are no snapshot."""


class MediaError(StreamencError):
    """A file or stream that cannot be opened, read or decoded."""


class WireError(MediaError):
    """A packet that is malformed, too large, or of an unknown version."""


class OutputError(StreamencError):
    """A file that cannot be written."""


class TransportError(StreamencError):
    """A network peer or broker that cannot be reached or went away, or a port in use."""


class DeviceError(StreamencError):
    """A sound device, camera or screen that does not exist, cannot be opened, or went away."""


class NodeError(StreamencError):
    """A node failed while the graph ran. The original error is `__cause__`."""

    def __init__(self, node: str, cause: BaseException) -> None:
        super().__init__(f"node {node!r} failed: {type(cause).__name__}: {cause}")
        self.node = node
        self.__cause__ = cause

    @property
    def reason(self) -> StreamencError:
        """What the node raised, where it did so on purpose; otherwise this."""
        cause = self.__cause__
        return cause if isinstance(cause, StreamencError) else self


class ContractError(StreamencError, AssertionError):
    """A model does not keep what its spec promises, as `streamenc.testing` found."""
