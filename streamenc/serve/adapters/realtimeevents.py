"""The events of OpenAI's realtime protocol that a client may send, without any I/O.

Both of its shapes of a session are read: the flat one (`input_audio_format`, `turn_detection`), and
the nested one that came later (`audio.input.format`, `audio.input.turn_detection`). Fields that
this server has no use for are passed over, as voices and instructions; values that it has none for
are refused. Nothing is decoded before its length is known.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from streamenc.io.network.websocket.livemessages import Layout, Vad
from streamenc.serve.adapters import g711

# Formats of sound by both of their names, and samples a second.
RATES = {"pcm16": 24_000, "g711_ulaw": 8_000, "g711_alaw": 8_000}
NESTED = {"audio/pcm": "pcm16", "audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
LAWS = {"g711_ulaw": g711.MU_LAW, "g711_alaw": g711.A_LAW}
Encoding: TypeAlias = Literal["list", "base64"]

_Id = Annotated[str, Meta(max_length=512)]
_Milliseconds = Annotated[float, Meta(ge=0, le=60_000)]


class BadEvent(Exception):
    """An event that is refused, and changes nothing.

    Attributes:
        code, param: As the `error` event says them.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


# ----- what a session is set to


class TurnDetection(Struct, frozen=True):
    """Their names for what `Vad` has; `create_response` commits where speech stops."""

    type: str
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[float, Meta(ge=0, le=10_000)] = 300.0
    silence_duration_ms: _Milliseconds = 500.0
    create_response: bool = True


class Own(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What only this server has, under the key `streamenc`.

    Attributes:
        codebooks: How many come out; None for all.
        layout, dtype, hops: As in `Open`.
        encoding: Whether deltas are lists of numbers, or their bytes in base64.
    """

    codebooks: Annotated[int, Meta(ge=1, le=1024)] | None = None
    layout: Layout = "books"
    dtype: Literal["", "float32", "float16", "bfloat16"] = ""
    hops: Annotated[int, Meta(ge=1, le=1000)] = 1
    encoding: Encoding = "list"


class Settings(Struct, frozen=True):
    """What a session is set to; `updated` by each `session.update`."""

    model: str
    format: str = "pcm16"
    turn_detection: TurnDetection | None = None
    own: Own = Own()

    @property
    def rate(self) -> int:
        """Samples a second that come."""
        return RATES[self.format]

    @property
    def vad(self) -> Vad | None:
        turns = self.turn_detection
        if turns is None:
            return None
        return Vad(turns.threshold, turns.silence_duration_ms, turns.prefix_padding_ms)

    def updated(self, asked: Session) -> Settings:
        """With what `asked` has. Raises BadEvent."""
        if asked.model is not UNSET and asked.model != self.model:
            raise BadEvent(
                "cannot_update_model",
                f"this session has the model {self.model}; connect anew for another one",
                "session.model",
            )
        nested = asked.audio.input if asked.audio is not UNSET else UNSET
        given: Any = asked.input_audio_format
        turns = asked.turn_detection
        if nested is not UNSET:
            given = given if nested.format is UNSET else _format(nested.format)
            turns = turns if nested.turn_detection is UNSET else nested.turn_detection
        if given is not UNSET and given not in RATES:
            wanted = ", ".join((*RATES, *NESTED))
            raise BadEvent(
                "invalid_value",
                f"got the audio format {given!r:.80}; wanted one of {wanted}",
                "session.input_audio_format",
            )
        if turns is not UNSET and turns is not None and turns.type != "server_vad":
            raise BadEvent(
                "invalid_value",
                f"got turn_detection {turns.type!r:.80}; wanted server_vad, or null for none",
                "session.turn_detection.type",
            )
        return Settings(
            self.model,
            self.format if given is UNSET else given,
            self.turn_detection if turns is UNSET else turns,
            self.own if asked.streamenc is UNSET else _own(self.own, asked.streamenc),
        )

    def described(self) -> dict[str, Any]:
        """Both of their shapes of a session, without what only a stream knows."""
        turns = msgspec.to_builtins(self.turn_detection)
        name = next(nested for nested, flat in NESTED.items() if flat == self.format)
        shape = {"type": name, "rate": self.rate}
        return {
            "model": self.model,
            "input_audio_format": self.format,
            "turn_detection": turns,
            "audio": {"input": {"format": shape, "turn_detection": turns}},
        }


def _format(nested: _Format) -> str:
    flat = NESTED.get(nested.type)
    if flat is None:
        return nested.type
    if nested.rate is not UNSET and nested.rate != RATES[flat]:
        raise BadEvent(
            "invalid_value",
            f"got {nested.type} at {nested.rate:g} Hz; wanted {RATES[flat]}; /v1/stream takes any "
            "rate",
            "session.audio.input.format.rate",
        )
    return flat


def _own(before: Own, asked: dict[str, Any]) -> Own:
    """Only what is there is changed. Raises BadEvent."""
    try:
        return msgspec.convert(msgspec.structs.asdict(before) | asked, Own)
    except msgspec.ValidationError as error:
        raise BadEvent("invalid_value", f"streamenc: {error}", "session.streamenc") from None


class _Format(Struct, frozen=True):
    type: str
    rate: float | UnsetType = UNSET


class _Input(Struct, frozen=True):
    format: _Format | UnsetType = UNSET
    turn_detection: TurnDetection | None | UnsetType = UNSET


class _Audio(Struct, frozen=True):
    input: _Input | UnsetType = UNSET


class Session(Struct, frozen=True):
    model: _Id | UnsetType = UNSET
    input_audio_format: str | UnsetType = UNSET
    turn_detection: TurnDetection | None | UnsetType = UNSET
    audio: _Audio | UnsetType = UNSET
    streamenc: dict[str, Any] | UnsetType = UNSET


# ----- events


class Update(Struct, tag_field="type", tag="session.update", frozen=True):
    session: Session
    event_id: _Id | None = None


class Append(Struct, tag_field="type", tag="input_audio_buffer.append", frozen=True):
    audio: str
    event_id: _Id | None = None


class Commit(Struct, tag_field="type", tag="input_audio_buffer.commit", frozen=True):
    event_id: _Id | None = None


class Clear(Struct, tag_field="type", tag="input_audio_buffer.clear", frozen=True):
    event_id: _Id | None = None


class Create(Struct, tag_field="type", tag="response.create", frozen=True):
    event_id: _Id | None = None


Event: TypeAlias = Update | Append | Commit | Clear | Create


class _Head(Struct, frozen=True):
    type: Any = ""
    event_id: _Id | None = None


_events = msgspec.json.Decoder(Event)
_heads = msgspec.json.Decoder(_Head)
_KNOWN = [member.__struct_config__.tag for member in (Update, Append, Commit, Clear, Create)]


def read_event(text: str) -> Event:
    """Raises BadEvent."""
    try:
        return _events.decode(text)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        kind = head_of(text).type
        if isinstance(kind, str) and kind and kind not in _KNOWN:
            raise BadEvent(
                "invalid_value",
                f"got an event {kind!r:.80}; this server reads {', '.join(map(str, _KNOWN))}",
                "type",
            ) from None
        raise BadEvent("invalid_event", f"got a malformed event: {error}") from None


def head_of(text: str) -> _Head:
    """Of an event that may be malformed."""
    try:
        return _heads.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _Head()


def samples_of(audio: str, format: str) -> np.ndarray[Any, Any]:
    """int16 (1, samples) of an event's base64. Raises BadEvent."""
    try:
        encoded = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise BadEvent("invalid_value", f"audio is no base64: {error}", "audio") from None
    if format != "pcm16":
        return g711.decode(encoded, LAWS[format])[None]
    if len(encoded) % 2:
        raise BadEvent(
            "invalid_value",
            f"got {len(encoded)} bytes of pcm16; samples have 2 bytes each, little-endian",
            "audio",
        )
    return np.frombuffer(encoded, "<i2").astype(np.int16, copy=False)[None]
