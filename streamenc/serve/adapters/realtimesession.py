"""RealtimeSession: one client that speaks OpenAI's realtime events, at a LiveStream.

Tokens come as the sound does, not first when it is committed. A *turn* is what was appended between
two commits: one stream of the model, from a fresh state to its flush.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np

from streamenc.errors import (
    EngineFull,
    InputError,
    StreamencError,
    TransportError,
    UsageError,
    WireError,
)
from streamenc.graph.frames import Frame
from streamenc.io.network.websocket.livemessages import (
    Flush,
    Flushed,
    GoAway,
    Open,
    Set,
    Speech,
)
from streamenc.io.network.wire import Data
from streamenc.serve.adapters.realtimeevents import (
    Append,
    BadEvent,
    Clear,
    Commit,
    Event,
    Settings,
    Update,
    head_of,
    read_event,
    samples_of,
)
from streamenc.serve.service import Service
from streamenc.serve.streams.attachment import Attachment
from streamenc.serve.streams.livestream import LiveStream
from streamenc.serve.streams.outbox import Sent
from streamenc.serve.streamsocket import CLOSE_CODES, POLICY_VIOLATION

# Numbered messages that may be on their way to us: those that were sent are acknowledged at once.
WINDOW = 256
_JSON = msgspec.json.Encoder()


@dataclass(slots=True)
class Turn:
    """What was appended between two commits.

    Attributes:
        start: Samples of the stream before it.
        samples: Appended so far.
        items: Along time, of what was sent of it.
        committed, cleared: How it ended.
    """

    item_id: str
    response_id: str
    start: int
    samples: int = 0
    items: int = 0
    codebooks: int = 0
    committed: bool = False
    cleared: bool = False

    @classmethod
    def at(cls, start: int) -> Turn:
        return cls(f"item_{secrets.token_hex(8)}", f"resp_{secrets.token_hex(8)}", start)


class Gone(Exception):
    """The session ends, with an `error` event of a code of docs/server."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def close(self) -> int:
        """The code that closes the socket."""
        return CLOSE_CODES.get(self.code, POLICY_VIOLATION)

    @property
    def kind(self) -> str:
        return "server_error" if self.close in (1011, 1012, 1013) else "invalid_request_error"


class RealtimeSession:
    """One client's session.

    Args:
        send: Sends one text; waits where the client is slow.
    """

    def __init__(
        self,
        service: Service,
        settings: Settings,
        owner: str,
        send: Callable[[str], Awaitable[None]],
    ) -> None:
        self._service, self._owner = service, owner
        self._settings, self._send_text = settings, send
        self._id = f"sess_{secrets.token_hex(8)}"
        self._event_number = 0
        self._sending = asyncio.Lock()  # so that events come in the order of their numbers
        self._ordering = asyncio.Lock()  # what goes into the stream, and `_turns`
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._earlier = Fraction(0)  # seconds of sound that went into streams before this one
        self._last_item: str | None = None
        self._live: LiveStream | None = None

    async def open(self) -> None:
        """Opens the stream. Raises what `Service.open` does."""
        settings = self._settings
        own = settings.own
        self._live = await self._service.open(
            Open(
                settings.model,
                format="s16",
                rate=settings.rate,
                channels=1,
                codebooks=own.codebooks,
                dtype=own.dtype,
                layout=own.layout,
                hops=own.hops,
                vad=settings.vad,
                window=WINDOW,
            ),
            self._owner,
        )
        self._seq = self._position = 0
        self._turns = deque([Turn.at(0)])
        self._one_turn = asyncio.Event()
        self._one_turn.set()
        attachment, _ = self._live.attach(window=WINDOW)
        self._start(self._write(self._live, attachment))

    async def created(self) -> None:
        """The first event."""
        await self._send("session.created", session=self._described())

    async def read(self, text: str) -> None:
        """The client's next event. What is refused changes nothing. Raises Gone."""
        try:
            event = read_event(text)
            await self._take(event)
        except BadEvent as bad:
            await self.refuse(bad.code, bad.message, bad.param, head_of(text).event_id)
        except TransportError as error:
            raise Gone("engine_gone", str(error)) from None
        except (InputError, WireError) as error:
            await self.refuse("invalid_value", str(error), None, head_of(text).event_id)
        except UsageError as error:
            # The stream has ended; who reads what comes out may not have noticed yet.
            assert self._live is not None
            raise Gone(self._live.ended or "ending", str(error)) from None

    async def refuse(
        self,
        code: str,
        message: str,
        param: str | None = None,
        event_id: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        """Sends an `error` event; `event_id` is of the client's event that it is about."""
        error = {"type": kind, "code": code, "message": message, "param": param}
        await self._send("error", error=error | {"event_id": event_id})

    @property
    def failed(self) -> asyncio.Future[None]:
        """Done once the stream ended under the client: Gone, or what its socket raised."""
        return self._failed

    async def aclose(self) -> None:
        """Ends the stream; nothing of it is kept. It goes on where this is cancelled."""
        await asyncio.shield(asyncio.ensure_future(self._close()))

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if not self._failed.cancel() and not self._failed.cancelled():
            self._failed.exception()  # whoever ended the session need not hear of it
        if self._live is not None:
            await self._service.forget(self._live)

    # ----- what the client asks for

    async def _take(self, event: Event) -> None:
        if isinstance(event, Append):
            await self._append(samples_of(event.audio, self._settings.format))
        elif isinstance(event, Update):
            await self._update(self._settings.updated(event.session))
        elif isinstance(event, Clear):
            await self._clear()
        elif isinstance(event, Commit) or self._turns[-1].samples or self._last_item is None:
            await self._commit(self._turns[-1])
        # else `response.create` behind a commit, whose tokens come already

    async def _append(self, samples: np.ndarray[Any, Any]) -> None:
        if not samples.shape[1]:
            return
        async with self._ordering:
            assert self._live is not None
            most = max(1, self._live.opened.max_message_bytes // samples.itemsize)
            for start in range(0, samples.shape[1], most):
                piece = samples[:, start : start + most]
                length, pts = piece.shape[1], self._position
                await self._put(Data(0, 0, self._seq, pts, length, False, 0, 1.0, piece))
                self._position += length
                self._turns[-1].samples += length

    async def _commit(self, turn: Turn) -> None:
        async with self._ordering:
            if turn is not self._turns[-1]:
                return  # the client committed or cleared it meanwhile
            if not turn.samples:
                raise BadEvent(
                    "input_audio_buffer_commit_empty",
                    "nothing was appended since the last commit or clear; append sound first",
                )
            turn.committed = True
            await self._send(
                "input_audio_buffer.committed",
                item_id=turn.item_id,
                previous_item_id=self._last_item,
                response_id=turn.response_id,
                **self._span(turn),
            )
            self._last_item = turn.item_id
            await self._end(turn)

    async def _clear(self) -> None:
        async with self._ordering:
            turn = self._turns[-1]
            turn.cleared = bool(turn.samples)
            if turn.items:
                await self._done(turn, "cancelled")
            await self._send("input_audio_buffer.cleared")
            if turn.samples:
                await self._end(turn)

    async def _end(self, turn: Turn) -> None:
        """The model's stream ends behind `turn`, and another one begins."""
        self._turns.append(Turn.at(self._position))
        self._one_turn.clear()
        await self._put(Flush())

    async def _update(self, settings: Settings) -> None:
        before = self._settings
        own = msgspec.structs.replace(settings.own, encoding=before.own.encoding)
        codebooks = own.codebooks
        anew = (
            msgspec.structs.replace(own, codebooks=before.own.codebooks) != before.own
            or settings.format != before.format
            or settings.vad != before.vad
        )
        async with self._ordering:
            if anew:
                await self._reopen(settings)
            elif codebooks != before.own.codebooks:
                await self._put(Set(codebooks))
            self._settings = settings
        await self._send("session.updated", session=self._described())

    async def _reopen(self, settings: Settings) -> None:
        """Another stream, for sound of another kind."""
        if self._turns[-1].samples:
            raise BadEvent(
                "session_update_while_appending",
                "format, turn_detection, layout, dtype and hops change between turns: commit or "
                "clear what was appended first",
                "session",
            )
        await self._one_turn.wait()
        before, live = self._settings, self._live
        assert live is not None
        self._earlier += Fraction(self._position, before.rate)
        self._live = None
        await self._service.forget(live)
        self._settings = settings
        try:
            await self.open()
        except EngineFull as full:
            raise Gone("full", str(full)) from None
        except TransportError as error:
            raise Gone("engine_gone", str(error)) from None
        except StreamencError as error:
            # What was asked for is not there; what was there before is.
            self._settings = before
            await self.open()
            raise BadEvent("invalid_value", str(error), "session") from None

    async def _put(self, message: Data | Flush | Set) -> None:
        assert self._live is not None
        await self._live.put(message)
        self._seq += 1

    # ----- what comes out

    async def _write(self, live: LiveStream, attachment: Attachment) -> None:
        async for sent in attachment:
            if isinstance(sent, GoAway):
                await self._send("streamenc.goaway", seconds=sent.seconds, message=sent.why)
            if not isinstance(sent, Sent):
                continue
            what = sent.what
            turn = self._turns[0]
            if isinstance(what, Frame) and not turn.cleared:
                await self._delta(turn, what)
            elif isinstance(what, Speech) and not turn.cleared:
                await self._speech(turn, what)
            elif isinstance(what, Flushed):
                if not turn.cleared:
                    await self._done(turn, "completed")
                self._turns.popleft()
                if len(self._turns) == 1:
                    self._one_turn.set()
            attachment.credit(sent.n + 1, WINDOW)
        if live is self._live:
            raise Gone(attachment.ended, attachment.message)

    async def _delta(self, turn: Turn, frame: Frame) -> None:
        assert self._live is not None
        data, first = frame.data, turn.items
        turn.items += data.shape[1]
        turn.codebooks = data.shape[0]
        size = self._live.opened.codebook_size
        packed: dict[str, Any] = {}
        if self._settings.own.encoding == "list":
            delta: Any = data.tolist()
        else:
            little = data.astype(_dtype(data, size), copy=False)
            delta = base64.b64encode(np.ascontiguousarray(little).tobytes()).decode()
            packed = {"dtype": little.dtype.str.lstrip("<|"), "shape": data.shape}
        await self._send(
            "response.tokens.delta",
            response_id=turn.response_id,
            item_id=turn.item_id,
            delta=delta,
            **packed,
            frames=[first, turn.items],
            codebooks=turn.codebooks if size else 0,
            pts=frame.pts,
            duration=frame.duration,
            audio_start_ms=self._milliseconds(frame.pts),
            discontinuity=frame.discontinuity,
        )

    async def _done(self, turn: Turn, status: str) -> None:
        await self._send(
            "response.tokens.done",
            response_id=turn.response_id,
            item_id=turn.item_id,
            status=status,
            frames=turn.items,
            **self._span(turn),
        )

    async def _speech(self, turn: Turn, speech: Speech) -> None:
        at = self._milliseconds(speech.pts)
        if speech.event == "started":
            kind, key = "input_audio_buffer.speech_started", "audio_start_ms"
        else:
            kind, key = "input_audio_buffer.speech_stopped", "audio_end_ms"
        await self._send(kind, **{key: at}, item_id=turn.item_id)
        detection = self._settings.turn_detection
        if speech.event == "stopped" and detection is not None and detection.create_response:
            # Not from here: whoever waits for room in the stream must not hold up what comes out.
            self._start(self._commit(turn))

    # ----- of both

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is None or self._failed.done():
            return
        if isinstance(error, TransportError):
            error = Gone("engine_gone", str(error))
        self._failed.set_exception(error)

    async def _send(self, kind: str, /, **fields: Any) -> None:
        async with self._sending:
            self._event_number += 1
            event = {"type": kind, "event_id": f"event_{self._id[5:]}_{self._event_number}"}
            await self._send_text(_JSON.encode(event | fields).decode())

    def _milliseconds(self, pts: int) -> int:
        """Since the session's first sample, whatever was committed or cleared."""
        return round(1000 * (self._earlier + Fraction(pts, self._settings.rate)))

    def _span(self, turn: Turn) -> dict[str, int]:
        return {
            "audio_start_ms": self._milliseconds(turn.start),
            "audio_end_ms": self._milliseconds(turn.start + turn.samples),
        }

    def _described(self) -> dict[str, Any]:
        assert self._live is not None
        opened = self._live.opened
        facts = {
            "hop": opened.hop,
            "lead": opened.lead,
            "model_rate": opened.model_rate,
            "rate": opened.rate,
            "delay_ms": opened.delay_ms,
            "equality": opened.equality,
            "fingerprint": opened.fingerprint,
            "codebook_size": opened.codebook_size,
            "vad": opened.vad,
        }
        own = msgspec.structs.asdict(self._settings.own)
        own["codebooks"] = own["codebooks"] or opened.codebooks
        return {
            "id": self._id,
            "object": "realtime.session",
            "type": "realtime",
            **self._settings.described(),
            "streamenc": own | facts,
        }


def _dtype(data: np.ndarray[Any, Any], codebook_size: int) -> str:
    """Little-endian, and for codes the smallest that holds all, as in packets."""
    if not codebook_size:
        return "<f2" if data.dtype == np.float16 else "<f4"
    return "<u1" if codebook_size <= 2**8 else "<u2" if codebook_size <= 2**16 else "<u4"
