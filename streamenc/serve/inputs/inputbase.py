"""Input: packets of data that a client sends -> chunks for a model, as a stream with its state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, TypeVar

import msgspec
import numpy as np
from msgspec import Struct

from streamenc.errors import InputError, SnapshotError
from streamenc.io.network.wire import PAYLOAD_DTYPES, Data

# Of what is no sound, whose tick is a sample.
TICK = Fraction(1, 90_000)
# Beyond them, JavaScript's numbers are not exact any more.
MAX_PTS = 2**53
MAX_STATE_BYTES = 64 * 2**20

Array = np.ndarray[Any, Any]
_S = TypeVar("_S", bound=Struct)


class JumpError(InputError):
    """A packet whose `pts` jumps without the flag of a discontinuity."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a model's session takes next.

    Attributes:
        data: (1, channels, samples) float32 at the model's rate; (1, 3, images, height, width)
            uint8; (1, codebooks, frames) codes; (1, bins, frames) float32; or texts.
        items: Along time.
        pts: Where it begins, in ticks of the input's time base.
        duration: How long it lasts, in the same.
        discontinuity: The model's stream ends before it, and a new one starts.
        scale: Of codes.
        arrived_ns: `Data.arrived_unix_ns` of the packet in which its last item is.
    """

    data: Array | list[str]
    items: int
    pts: int
    duration: int
    discontinuity: bool = False
    scale: float = 1.0
    arrived_ns: int = 0


class Input(ABC):
    """One stream's packets -> chunks. It is used by one thread at a time.

    Attributes:
        format: How packets are read.
        rate: Samples, images or frames a second that come.
        channels: Of sound; 0 of all else.
        time_base: Seconds a tick.
        slow: `push`, `flush` and `restore` take long: call them in a thread.
        delay_seconds: By how much what has come may be ahead of what was given, at most.
        exact: Whether `restore` goes on bit for bit; `why` it does not.
        next_pts: Where the next packet of sound begins; of all else, where the last one ended.
    """

    format: str
    rate: float
    channels: int = 0
    time_base: Fraction = TICK
    slow: ClassVar[bool] = False
    delay_seconds: float = 0.0
    exact: bool = True
    why: str = ""
    next_pts: int = 0

    @abstractmethod
    def check(self, data: Data) -> None:
        """Whether `push` would take it; changes nothing, and is quick.

        Raises:
            JumpError: Where only its `pts` does not fit.
            InputError: Where it does not fit.
        """

    @abstractmethod
    def push(self, data: Data) -> list[Chunk]:
        """What can be given now.

        Raises:
            InputError: As `check`, and where what is compressed cannot be decoded: the input then
                stands as before.
        """

    @abstractmethod
    def flush(self) -> list[Chunk]:
        """What is held back still; then a new stream starts, at any `pts`."""

    @abstractmethod
    def state(self) -> bytes | None:
        """All that `restore` needs; None where it is more than can be kept."""

    @abstractmethod
    def restore(self, blob: bytes) -> None:
        """Goes on where `state` of an input that was asked for in the same way was taken.

        Raises:
            SnapshotError: Where it is damaged, or not of such an input.
        """

    def close(self) -> None:
        """Gives up what it holds; may be called twice."""
        return


# numpy computes the name of a type anew each time.
_NAMES = {
    np.dtype(name).newbyteorder("<"): np.dtype(name).name
    for name in PAYLOAD_DTYPES
    if name[0] != "b"
}


def check_packet(data: Data, wanted: str, dtypes: tuple[str, ...], axes: int) -> None:
    """Raises InputError where a packet is not at all what its format has."""
    if data.stream or data.track:
        raise InputError(
            f"got a packet of stream {data.stream}, track {data.track}; both are 0 of what goes to "
            "a server"
        )
    got = data.data
    if got.ndim != axes or _NAMES.get(got.dtype) not in dtypes:
        raise InputError(f"got {got.dtype.name} {got.shape}; wanted {wanted}")
    if abs(data.pts) > MAX_PTS or data.duration > MAX_PTS:
        raise InputError(f"got pts {data.pts}, duration {data.duration}; wanted up to 2**53 ticks")


def packed(state: Struct) -> bytes:
    return msgspec.msgpack.encode(state)


def unpacked(blob: bytes, kind: type[_S]) -> _S:
    """Raises SnapshotError."""
    if len(blob) > MAX_STATE_BYTES:
        raise SnapshotError(f"a state of {len(blob)} bytes; at most {MAX_STATE_BYTES} are read")
    try:
        return msgspec.msgpack.decode(blob, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"the state of an input is damaged: {error}") from None


def damaged(what: str) -> SnapshotError:
    return SnapshotError(f"the state of an input does not fit: {what}")
