"""What an engine's process and those of its clients say to each other; no I/O, and never a pickle.

A message is a few frames. The first is MAGIC, a byte of the version, and a table of what follows,
as MessagePack; the others are raw arrays and snapshots, in the table's order. So the version is
known before anything is parsed, and thousands of rows cost one small table.

    client                                          engine
    Hello                                      ->
                                               <-   Welcome, or Refused
    Turn: entries Open Close Choose Call Block ->
                                               <-   Told: entries Block Result Failure
                                               <-   Beat, each second; Leaving; Refused, the last
    Bye                                        ->

A Block is many rows of one form, of any sessions: a frame of their tags and, from a client, one of
their sessions, both int64; and one of each array. A client numbers its calls by tags, and its
sessions itself, so that a session can be used before the engine has answered that it is open.

Credit: a call is in flight from when it was sent to when its client has told, by `Turn.received`,
that the answer came. A client has at most `Limits.calls` in flight, and a session `Limits.deep`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import msgspec
import numpy as np

from streamenc import errors
from streamenc.engine.statistics import EngineStatistics
from streamenc.errors import StreamencError, WireError
from streamenc.spec import StreamSpec

MAGIC = b"streamenc-engine"
VERSION = 1
BEAT_SECONDS = 1.0
MAX_TABLE_BYTES = 1 << 20
MAX_ENTRIES = 4096
MAX_AXES = 8
MAX_TEXT = 1 << 16  # letters of a reason or a name
HEAVY_BYTES = 1 << 16
NOBODY = -1  # the session of calls of the engine itself

# Of arrays, as numpy writes them: little-endian numbers, and nothing that holds an object.
DTYPES = frozenset(("|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"))

Array: TypeAlias = np.ndarray[Any, Any]


class Limits(msgspec.Struct, frozen=True):
    """What the engine lets each client have.

    Attributes:
        deep: Calls of one session in flight.
        calls: Calls of all its sessions in flight.
        message_bytes: Of one message, with all that is in it.
        heavy_bytes: Of all calls in flight that have HEAVY_BYTES or more.
    """

    deep: int = 8
    calls: int = 8192
    message_bytes: int = 1 << 26
    heavy_bytes: int = 1 << 27


class ModelFacts(msgspec.Struct, frozen=True):
    """A model that an engine serves: its name there, and in which direction.

    Attributes:
        public_name: What streams of it carry.
    """

    name: str
    decode: bool
    public_name: str
    fingerprint: str
    spec: StreamSpec


# ----- a client's


class Hello(msgspec.Struct, tag="hello"):
    """The first message. `process` is the client's, for the engine's log."""

    process: int


class Open(msgspec.Struct, tag="open", array_like=True):
    """A new session, which the client calls `session`."""

    tag: int
    session: int
    name: str
    decode: bool
    hops: int
    codebooks: int | None


class Close(msgspec.Struct, tag="close", array_like=True):
    """Gives a session's place back; not answered."""

    session: int


class Choose(msgspec.Struct, tag="choose", array_like=True):
    """How many codebooks a session gives from here on, None for all; not answered."""

    session: int
    codebooks: int | None


class Call(msgspec.Struct, tag="call", array_like=True):
    """What is no step of numbers.

    Attributes:
        what: "flush", "snapshot", "restore" (the snapshot is a frame) or "texts", a step of
            `texts`; or "statistics", of the engine, where `session` is NOBODY.
    """

    tag: int
    session: int
    what: str
    texts: list[str] = []


class Form(msgspec.Struct, tag="array", array_like=True, frozen=True):
    """An array: numpy's name of its type, and its axes."""

    dtype: str
    shape: tuple[int, ...]


class Block(msgspec.Struct, tag="block", array_like=True):
    """Rows of one form: of codes with a volume two arrays each, of all others one."""

    count: int
    forms: list[Form]


class Turn(msgspec.Struct, tag="turn"):
    """All that a client has to say at a time; `received`: answers that came to it so far."""

    received: int
    entries: list[Open | Close | Choose | Call | Block]


class Bye(msgspec.Struct, tag="bye"):
    """The client goes; all its sessions are closed."""


# ----- an engine's


class Welcome(msgspec.Struct, tag="welcome"):
    """The answer to Hello. `free`: places that no session has."""

    process: int
    models: list[ModelFacts]
    limits: Limits
    max_sessions: int
    free: int
    statistics: EngineStatistics


class Result(msgspec.Struct, tag="result", array_like=True):
    """What a call gave that is no array.

    Attributes:
        blob: Whether it is bytes, which are a frame.
        codebooks: Of a restored session.
    """

    tag: int
    blob: bool = False
    codebooks: int | None = None
    statistics: EngineStatistics | None = None


class Failure(msgspec.Struct, tag="failure", array_like=True):
    """What a call raised: the name of a class in streamenc.errors, and its message."""

    tag: int
    kind: str
    text: str


class Told(msgspec.Struct, tag="told"):
    """The answers that there are at a time.

    Attributes:
        turns: Of the client, that are counted in `free`.
        free: Places that no session has.
    """

    turns: int
    free: int
    entries: list[Block | Result | Failure]


class Beat(msgspec.Struct, tag="beat"):
    """Each second, and where a place is free again; see Told."""

    turns: int
    free: int
    statistics: EngineStatistics


class Leaving(msgspec.Struct, tag="leaving"):
    """The engine ends in so many seconds, or once no session is open; it opens no more."""

    seconds: float


class Refused(msgspec.Struct, tag="refused"):
    """The last message to a client: why there are no more."""

    why: str


FromClient: TypeAlias = Hello | Turn | Bye
FromEngine: TypeAlias = Welcome | Told | Beat | Leaving | Refused
Entry: TypeAlias = Open | Close | Choose | Call | Block | Result | Failure


def _plain(value: Any) -> Any:
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    # What msgspec wants of a hook that does not know a type.
    raise NotImplementedError(f"a {type(value).__name__} in a message")


def _made(wanted: type, value: Any) -> Any:
    if wanted is Fraction and isinstance(value, str) and len(value) < 99:
        return Fraction(value)
    raise ValueError(f"{value!r} is no {wanted.__name__}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_of_client = msgspec.msgpack.Decoder(FromClient, dec_hook=_made)
_of_engine = msgspec.msgpack.Decoder(FromEngine, dec_hook=_made)


def head(message: FromClient | FromEngine) -> bytes:
    """The first frame of a message."""
    return MAGIC + bytes((VERSION,)) + _encoder.encode(message)


def read_client(frames: Sequence[memoryview]) -> FromClient:
    """What a client's message says; of a Turn each block's frames are still to be taken.

    Raises:
        WireError: Where it is malformed, too large or of another version.
    """
    message: FromClient = _read(_of_client, frames)
    return message


def read_engine(frames: Sequence[memoryview]) -> FromEngine:
    """What an engine's message says; see `read_client`."""
    message: FromEngine = _read(_of_engine, frames)
    return message


def _read(decoder: Any, frames: Sequence[memoryview]) -> Any:
    start = len(MAGIC)
    first = frames[0] if frames else memoryview(b"")
    if bytes(first[:start]) != MAGIC or len(first) <= start:
        raise WireError("got what is no message of streamenc's engines; check the address")
    if first[start] != VERSION:
        raise WireError(
            f"the other side speaks version {first[start]} of the engine's protocol, and this one "
            f"{VERSION}: install the same streamenc for both"
        )
    if len(first) > MAX_TABLE_BYTES:
        raise WireError(f"got a table of {len(first)} bytes; wanted at most {MAX_TABLE_BYTES}")
    try:
        message = decoder.decode(first[start + 1 :])
    except (msgspec.DecodeError, ValueError, ArithmeticError, RecursionError) as error:
        raise WireError(f"got a message that is damaged: {error}") from error
    entries = getattr(message, "entries", ())
    if len(entries) > MAX_ENTRIES:
        raise WireError(f"got {len(entries)} entries in a message; wanted at most {MAX_ENTRIES}")
    return message


_NUMBER = Form("<i8", ())


class Frames:
    """The frames behind a message's first one, taken in order."""

    def __init__(self, frames: Sequence[memoryview]) -> None:
        self._frames = frames
        self._at = 1

    def blob(self) -> memoryview:
        """Raises WireError where there is none left."""
        if self._at == len(self._frames):
            raise WireError("got a message with fewer frames than it says")
        self._at += 1
        return self._frames[self._at - 1]

    def numbers(self, block: Block) -> list[int]:
        """Its tags, or its sessions. Raises WireError where the frame is another."""
        numbers: list[int] = self._array(block.count, _NUMBER).tolist()
        return numbers

    def arrays(self, block: Block) -> list[Array]:
        """Its arrays of (count, ...), which share the frames' memory. Raises WireError."""
        if not 1 <= len(block.forms) <= 2:
            raise WireError(f"got rows of {len(block.forms)} arrays; wanted 1, or 2 with a volume")
        return [self._array(block.count, form) for form in block.forms]

    def end(self) -> None:
        """Raises WireError where frames are left."""
        if self._at != len(self._frames):
            raise WireError("got a message with more frames than it says")

    def _array(self, count: int, form: Form) -> Array:
        if form.dtype not in DTYPES or len(form.shape) > MAX_AXES or min(form.shape, default=0) < 0:
            raise WireError(f"got an array of {form.dtype[:20]!r} {form.shape[:9]}")
        frame = self.blob()
        dtype = np.dtype(form.dtype)
        wanted = count * math.prod(form.shape) * dtype.itemsize
        if count < 1 or len(frame) != wanted:
            raise WireError(f"got {len(frame)} bytes of {count} rows; wanted {wanted}")
        flat = np.frombuffer(frame, dtype) if wanted else np.empty(0, dtype)
        return flat.reshape(count, *form.shape)


class Outgoing:
    """A message in the making: rows of one form become one block, and no session's order changes.

    Args:
        of_client: Whether rows are told with their sessions.

    Attributes:
        count: Entries and rows.
        nbytes: Of what is not in the table.
    """

    def __init__(self, *, of_client: bool) -> None:
        self.count = self.nbytes = 0
        self.table: list[Any] = []
        self._of_client = of_client
        self._frames: list[list[Any]] = []  # of each entry: rows of a block, or a blob
        self._tags: list[list[int]] = []
        self._sessions: list[list[int]] = []
        self._open: dict[Any, int] = {}  # the last block of each form
        self._last: dict[int, int] = {}  # by session: the entry that its last one is in

    def row(self, tag: int, session: int, arrays: Sequence[Array]) -> None:
        """A row, of C-contiguous arrays of one of DTYPES."""
        first = arrays[0]
        alone = len(arrays) == 1
        key = (first.dtype, first.shape) if alone else tuple((a.dtype, a.shape) for a in arrays)
        at = self._open.get(key, -1)
        # The last block is behind all; an earlier one has to be behind all of the session.
        if at < 0 or (at < len(self.table) - 1 and at < self._last.get(session, -1)):
            at = self._open[key] = self._begun([Form(a.dtype.str, a.shape) for a in arrays])
        self._last[session] = at
        self._tags[at].append(tag)
        self._sessions[at].append(session)
        self._frames[at].append(first if alone else arrays)
        self.nbytes += first.nbytes if alone else sum(array.nbytes for array in arrays)
        self.count += 1

    def rows(self, tags: Sequence[int], form: Form, arrays: Sequence[Array]) -> None:
        """Answers of one form, one array each, behind all that is there."""
        if not self.table or getattr(self.table[-1], "forms", None) != [form]:
            self._begun([form])
        self._tags[-1] += tags
        self._frames[-1] += arrays
        self.count += len(tags)

    def entry(self, session: int, entry: Entry, blob: Any = None) -> None:
        """Any other entry, behind all of its session."""
        self._last[session] = len(self.table)
        self._add(entry, [] if blob is None else [blob])
        self.nbytes += 0 if blob is None else len(blob)
        self.count += 1

    def _begun(self, forms: list[Form]) -> int:
        self._add(Block(0, forms), [])
        return len(self.table) - 1

    def _add(self, entry: Entry, frames: list[Any]) -> None:
        self.table.append(entry)
        self._frames.append(frames)
        self._tags.append([])
        self._sessions.append([])

    @property
    def full(self) -> bool:
        """Whether it should go before more is added."""
        return len(self.table) >= MAX_ENTRIES // 2

    def frames(self, message: Turn | Told) -> list[Any]:
        """The message's frames; `message` has this table as its entries."""
        frames: list[Any] = [b""]
        for entry, tags, sessions, parts in zip(
            self.table, self._tags, self._sessions, self._frames, strict=True
        ):
            if isinstance(entry, Block):
                entry.count = len(tags)
                frames.append(np.array(tags, "<i8").tobytes())
                if self._of_client:
                    frames.append(np.array(sessions, "<i8").tobytes())
                arrays = [parts] if len(entry.forms) == 1 else zip(*parts, strict=True)
                frames += [b"".join(rows) for rows in arrays]
            else:
                frames += parts
        frames[0] = head(message)
        return frames


def sendable(array: Array) -> Array:
    """An array as it can be in a row. Raises TypeError for what holds no numbers."""
    dtype = array.dtype.newbyteorder("<")
    if dtype.str not in DTYPES:
        raise TypeError(f"numbers of {array.dtype} cannot be sent")
    return np.ascontiguousarray(array, dtype)


def failure(tag: int, error: BaseException) -> Failure:
    """What a call raised, for the other process."""
    kind = type(error).__name__
    if isinstance(error, errors.EngineFull):
        return Failure(tag, kind, str(error.max_sessions))
    if isinstance(error, StreamencError) and getattr(errors, kind, None) is type(error):
        return Failure(tag, kind, str(error)[:MAX_TEXT])
    return Failure(tag, "", f"in the engine's process: {kind}: {error}"[:MAX_TEXT])


def raised(told: Failure) -> StreamencError:
    """The same error here; what is none of streamenc's own is a StreamencError."""
    if told.kind == "EngineFull" and told.text.isdecimal() and len(told.text) < 20:
        return errors.EngineFull(int(told.text))
    kind = getattr(errors, told.kind, None)
    if kind in (None, errors.EngineFull, errors.NodeError) or not (
        isinstance(kind, type) and issubclass(kind, StreamencError)
    ):
        kind = StreamencError
    error: StreamencError = kind(told.text)
    return error
