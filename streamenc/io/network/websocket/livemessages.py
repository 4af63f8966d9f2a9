"""The control messages of the subprotocol `streamenc.v1`, in JSON, without any I/O.

docs/server describes them, and what goes beside them in binary: packets, as docs/io/wire.md has
them. Reading trusts nothing: a message that is too long or malformed raises WireError.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from streamenc.errors import WireError

SUBPROTOCOL = "streamenc.v1"
KEY_SUBPROTOCOL = "key."  # before a key, where a browser cannot send headers
MAX_MESSAGE_BYTES = 64 * 2**10
MAX_TEXT = 256

# Close codes of our own; the others are those of RFC 6455.
IDLE, TAKEN_OVER, EXPIRED, OFFENDED = 4408, 4409, 4410, 4400

Direction: TypeAlias = Literal["encode", "decode", "echo"]
# What a packet of input holds. "media" is the next bytes of any file or container, cut anywhere.
Format: TypeAlias = Literal[
    "f32", "s16", "opus", "media", "jpeg", "h264", "rgb", "codes", "features", "text"
]
# Of what does not fit between a producer and a reader that is too slow.
Policy: TypeAlias = Literal["block", "drop_oldest", "close"]
Layout: TypeAlias = Literal["books", "flat", "delay"]

_Word = Annotated[str, Meta(max_length=MAX_TEXT)]
_Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
_Ticks = Annotated[int, Meta(ge=-(2**53), le=2**53 - 1)]


class Vad(Struct, frozen=True, forbid_unknown_fields=True):
    """When speech starts and stops in the sound that goes in.

    Attributes:
        threshold: Above which probability there is speech, of 0 to 1.
        silence_ms: How long it must be quiet for speech to have stopped.
        padding_ms: By how much speech begins earlier than it was noticed.
        engine: "silero", "energy", or "auto": silero where it is installed.
    """

    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    silence_ms: Annotated[float, Meta(ge=0, le=60_000)] = 500.0
    padding_ms: Annotated[float, Meta(ge=0, le=10_000)] = 100.0
    engine: Literal["auto", "silero", "energy"] = "auto"


# ----- from the client


class Open(Struct, tag="open", frozen=True, forbid_unknown_fields=True):
    """The first message of a new stream.

    Attributes:
        model: A name that `/v1/models` lists.
        direction: "encode", "decode", or "echo": both; codes are track 0, sound is track 1.
        format: How packets of input are read; "" is "s16" for sound, "jpeg" for images, "codes" for
            decoders of codes.
        rate: Samples a second that come, and images a second; None for the model's own.
        channels: Of the sound that comes.
        codebooks: How many come out; None for all.
        dtype: What features are rounded to: "float32", "float16" or "bfloat16".
        size: "WIDTHxHEIGHT" that images are brought to; "" as the model has it.
        layout: How codes come out; see streamenc.nodes.codes.
        hops: Hops that an output packet covers.
        vad: Tells when speech starts and stops; None for not at all.
        window: Messages that the client can hold beyond those that it has acknowledged; 0 where it
            acknowledges nothing.
        policy: What happens to what does not fit: in the server's queue of input, and of output.
        snapshot: A snapshot follows, as a packet, to go on from.
    """

    model: _Word
    direction: Direction = "encode"
    format: Format | Literal[""] = ""
    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    channels: Annotated[int, Meta(ge=1, le=8)] | None = None
    codebooks: Annotated[int, Meta(ge=1, le=1024)] | None = None
    dtype: Literal["", "float32", "float16", "bfloat16"] = ""
    size: _Word = ""
    layout: Layout = "books"
    hops: Annotated[int, Meta(ge=1, le=1000)] = 1
    vad: Vad | None = None
    window: Annotated[int, Meta(ge=0, le=65_536)] = 0
    policy: Policy = "block"
    snapshot: bool = False


class Resume(Struct, tag="resume", frozen=True, forbid_unknown_fields=True):
    """The first message of a connection that goes on with a stream.

    Attributes:
        token: As `Opened` or `Resumed` gave it.
        received: Numbered messages that came: packets of data, and messages with an `n`.
        window: As of `Open`; None where it is what it was.
    """

    token: _Word
    received: _Count
    window: Annotated[int, Meta(ge=0, le=65_536)] | None = None


class Produce(Struct, tag="produce", frozen=True, forbid_unknown_fields=True):
    """The first message of who brings an encoded stream into a room.

    Attributes:
        token: Of `Producing`, where it goes on after a disconnection.
    """

    token: _Word = ""


class Listen(Struct, tag="listen", frozen=True, forbid_unknown_fields=True):
    """The first message of who listens in a room.

    Attributes:
        window: Packets that may wait for this listener at the server.
        policy: What happens beyond those.
    """

    window: Annotated[int, Meta(ge=1, le=4096)] = 64
    policy: Policy = "drop_oldest"


class Flush(Struct, tag="flush", frozen=True, forbid_unknown_fields=True):
    """The model's stream ends here, its tail treated as the published model does."""

    seq: _Count | None = None


class Mark(Struct, tag="mark", frozen=True, forbid_unknown_fields=True):
    """Comes back once everything before it has come out."""

    id: _Word
    seq: _Count | None = None


class Set(Struct, tag="set", frozen=True, forbid_unknown_fields=True):
    """Changes what comes out, from the next step on."""

    codebooks: Annotated[int, Meta(ge=1, le=1024)] | None | UnsetType = UNSET
    vad: bool | UnsetType = UNSET
    seq: _Count | None = None


class TakeSnapshot(Struct, tag="snapshot", frozen=True, forbid_unknown_fields=True):
    """Asks for the stream's whole state, to go on with at another server."""

    seq: _Count | None = None


class Close(Struct, tag="close", frozen=True, forbid_unknown_fields=True):
    """The stream is flushed, what is left is sent, and the server forgets it."""

    seq: _Count | None = None


Ordered: TypeAlias = Flush | Mark | Set | TakeSnapshot | Close
FromClient: TypeAlias = Open | Resume | Produce | Listen | Ordered


# ----- from the server


class InputFacts(Struct, frozen=True):
    """What the server makes of input: `rate` and `channels` of what comes, and its tick."""

    format: str
    rate: float
    channels: int
    time_base: tuple[int, int]


class Opened(Struct, tag="opened", frozen=True):
    """The stream is there.

    Attributes:
        token: What `resume` takes; a secret.
        equality: "offline", "segment" or "window".
        lead: Items of the model's first step, at the model's own `model_rate`; `hop` of the others.
        delay_ms: By how much sound is held back beyond a hop, by the model and the resampler.
        rate: Items that come out a second.
        window: Packets of input that may be on their way beyond those that the server has credited.
        exact_resume: Whether the stream also goes on bit for bit where the server's process dies;
            `why` it does not.
    """

    session: str
    token: str
    model: str
    direction: str
    fingerprint: str
    equality: str
    input: InputFacts
    model_rate: float
    lead: int
    hop: int
    delay_ms: float
    rate: float
    codebooks: int
    codebook_size: int
    window: int
    max_message_bytes: int
    max_queued_bytes: int
    resume_seconds: float
    exact_resume: bool = True
    why: str = ""
    vad: str = ""  # which one: "silero" or "energy"


class Resumed(Struct, tag="resumed", frozen=True):
    """The stream goes on.

    Attributes:
        next_seq: The number of the ordered message that the server wants next.
        next_pts: Where the input that it wants next begins.
        n: The numbered message that comes next.
        exact: Whether nothing is missing, twice or other than without the disconnection.
        source: "memory", or "store" where another process had it.
    """

    session: str
    token: str
    next_seq: int
    next_pts: int
    n: int
    exact: bool
    source: str
    window: int
    why: str = ""


class Producing(Struct, tag="producing", frozen=True):
    """The room is this client's.

    Attributes:
        token: With which it goes on after a disconnection; a secret.
        received: Packets of data that the room has of its stream.
        window: How many may be on their way beyond those that the server has credited.
        resume_seconds: How long the room waits for it after a disconnection.
    """

    room: str
    token: str
    received: int
    window: int
    max_message_bytes: int
    resume_seconds: float


class Listening(Struct, tag="listening", frozen=True):
    """What comes in the room, from now on.

    Attributes:
        producing: Whether somebody produces here already; otherwise for how long it waits.
    """

    room: str
    producing: bool
    wait_seconds: float


class Ack(Struct, tag="ack", frozen=True):
    """Ordered messages below `seq`, input before `pts`, need not be kept any more."""

    seq: int
    pts: int


class Marked(Struct, tag="mark", frozen=True):
    id: str
    pts: int
    n: int


class Flushed(Struct, tag="flushed", frozen=True):
    pts: int
    n: int


class WasSet(Struct, tag="set", frozen=True):
    """From the packet behind it on."""

    codebooks: int | None
    n: int


class Speech(Struct, tag="speech", frozen=True):
    """Speech started or stopped at `pts`, in ticks of the input."""

    event: Literal["started", "stopped"]
    pts: int
    n: int


class Dropped(Struct, tag="dropped", frozen=True):
    """So many packets were dropped here, of `total`; what follows is flagged a discontinuity."""

    where: Literal["input", "output"]
    packets: int
    total: int
    n: int


class SnapshotTaken(Struct, tag="snapshot", frozen=True):
    """A packet with it came before, which has no number."""

    seq: int
    pts: int
    n: int
    bytes: int


class Closed(Struct, tag="closed", frozen=True):
    """The stream's end, as the client wished."""

    n: int
    packets: int
    seconds: float


class GoAway(Struct, tag="goaway", frozen=True):
    """The server ends in so many seconds: resume then, here or elsewhere."""

    seconds: float
    why: str


class Error(Struct, tag="error", frozen=True):
    """Something was refused.

    Attributes:
        code: A word for programs, listed in docs/server.
        fatal: Whether the connection ends with it.
        seq: Of the packet that was refused, where it was one; the stream stands as before it.
    """

    code: str
    message: str
    fatal: bool = False
    seq: int | None = None


Numbered: TypeAlias = Marked | Flushed | WasSet | Speech | Dropped | SnapshotTaken | Closed
FromServer: TypeAlias = Opened | Resumed | Producing | Listening | Ack | Numbered | GoAway | Error

_encoder = msgspec.json.Encoder()
_from_client = msgspec.json.Decoder(FromClient)
_from_server = msgspec.json.Decoder(FromServer)


def encode_message(message: FromClient | FromServer) -> str:
    return _encoder.encode(message).decode()


def read_from_client(text: str) -> FromClient:
    """Raises WireError."""
    return _read(_from_client, text)  # type: ignore[no-any-return]


def read_from_server(text: str) -> FromServer:
    """Raises WireError."""
    return _read(_from_server, text)  # type: ignore[no-any-return]


def _read(decoder: Any, text: str) -> Any:
    if len(text) > MAX_MESSAGE_BYTES:
        raise WireError(f"got a message of {len(text)} characters; at most {MAX_MESSAGE_BYTES}")
    try:
        return decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireError(f"got a malformed message {text[:80]!r}: {error}") from None
