"""LiveStream: one client's stream on a server, which outlives the connections of its client."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET

from streamenc.errors import FitError, InputError, StreamencError, TransportError, UsageError
from streamenc.graph.frames import Frame
from streamenc.io.network.websocket.livemessages import (
    Ack,
    Close,
    Closed,
    Dropped,
    Error,
    Flush,
    Flushed,
    FromServer,
    Mark,
    Marked,
    Numbered,
    Opened,
    Ordered,
    Resumed,
    Set,
    SnapshotTaken,
    Speech,
    TakeSnapshot,
    WasSet,
    encode_message,
)
from streamenc.io.network.wire import (
    Credit,
    Data,
    StreamSnapshot,
    encode_credit,
    encode_snapshot,
)
from streamenc.nodes.speech.speechwatch import SpeechTold
from streamenc.serve.inputs.inputbase import Chunk
from streamenc.serve.streams.attachment import Attachment
from streamenc.serve.streams.framepackets import FramePackets
from streamenc.serve.streams.inbox import Inbox, Waiting
from streamenc.serve.streams.keeper import Keeper
from streamenc.serve.streams.outbox import Outbox
from streamenc.serve.streams.streamcoder import joined
from streamenc.serve.streams.streamparts import StreamParts
from streamenc.serve.streams.streamrecord import StreamRecord, kept

if TYPE_CHECKING:
    from streamenc.serve.service import Service

logger = logging.getLogger(__name__)

# At the server's end, for what still waits.
LAST_WRITE_SECONDS = 2.0
# Packets of sound that go through the model in one step, where so many wait.
MAX_TOGETHER = 16


class LiveStream:
    """One stream: input that waits, the encoder (or decoder) on the engine, output that waits.

    A task of its own takes what waits, one message after the other, for as long as the stream
    lives, whether a client is attached or not.

    Attributes:
        opened: What the client was told at first.
        token: By which a client comes back to it; a secret.
        owner: The name of the key that opened it.
        outbox: What goes to the client.
        detached_at: When its last client went, on the loop's clock; None while there is one.
        born: When it was opened, on the same clock.
        packets: Of data that came out so far.
        ended: Why it ended, a code of docs/server; "" while it lives.
    """

    def __init__(
        self,
        service: Service,
        parts: StreamParts,
        opened: Opened,
        *,
        owner: str,
        key: str,
        epoch: int,
    ) -> None:
        self._service, self._asked, self.opened = service, parts.asked, opened
        self.token, self.owner = opened.token, owner
        self._restored = epoch > 1
        self._exact, self._why = True, ""
        self._keeper = Keeper(
            service.store,
            key,
            epoch,
            service.limits.checkpoint_seconds,
            written=lambda record: self.notify(Ack(record.seq, record.pts), instead="ack"),
            lost=lambda: self.end("taken_over", "another server has resumed this stream"),
            complain=service.complain,
        )
        self._input, self._coder, self._speech = parts.source, parts.coder, parts.speech
        self._tick_seconds = float(parts.source.time_base)
        self._inbox = Inbox(opened, parts.asked.policy, parts.source, self._input_dropped)
        self._done_seq = self._done_pts = 0  # of the one that is taken next
        self._credited = 0
        self._packets = FramePackets()
        self.outbox = Outbox(opened.max_queued_bytes, self._packets.flagged)
        self.outbox.window = parts.asked.window
        self.packets = self._items = 0
        self._attachment: Attachment | None = None
        self._loop = asyncio.get_running_loop()
        self.born = self._loop.time()
        self.detached_at: float | None = self.born
        self._idle = asyncio.Event()  # nothing waits, and nothing is being taken
        self._leaving = False
        self.ended = self._ended_message = ""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to take what comes, once it is in the store."""
        await self._keeper.write(self._record)
        await self._keeper.finish()
        self._task = self._loop.create_task(self._run(), name=f"stream {self.opened.session}")

    # ----- from the client

    async def put(self, message: Data | Ordered, sender: Attachment | None = None) -> None:
        """The client's next ordered message; waits for room where the policy is to block.

        A message that came before, as they do after a resumption, is nothing, and so is one of a
        `sender` that is not attached any more.

        Raises:
            SequenceError, InputError, WireError: Where it does not fit: the stream stands as
                before, and waits for another message with that number.
            TooSlow: Where the policy is to close, and there is no room.
            UsageError: Where the stream has ended.
        """
        self._restored &= sender is None  # who goes on was told of it
        if self.over:
            raise UsageError(f"this stream has ended: {self._ended_message}")
        if isinstance(message, Set) and isinstance(message.codebooks, int):
            self._coder.check_codebooks(message.codebooks)
        if isinstance(message, Set) and message.vad is not UNSET:
            self._speech.check(message.vad)
        if await self._inbox.put(message, lambda: sender in (None, self._attachment)):
            self._idle.clear()

    def attach(self, *, received: int = 0, window: int | None = None) -> tuple[Attachment, Resumed]:
        """Sends from the `received`-th numbered message on, to this client and nobody else.

        Raises:
            UsageError: Where these messages are not there any more, or never were.
        """
        beyond = received > max(self.outbox.next, self.outbox.skip_to)
        if beyond and not self._restored:
            raise UsageError(
                f"{received} messages are acknowledged, and {self.outbox.next} were sent"
            )
        if not self.outbox.again_from(received):
            raise UsageError(
                f"messages from {received} on are not kept any more: open a new stream, with a "
                "window, and acknowledge what comes"
            )
        if beyond and self._asked.policy == "drop_oldest":
            self._lossy()  # of what is made once more, some was dropped, and may not be this time
        self.outbox.window = self.outbox.window if window is None else window
        if self._attachment is not None:
            self._attachment.end("taken_over", "another connection has resumed this stream")
        attachment = self._attachment = Attachment(self)
        self.detached_at = None
        if self.ended:
            attachment.end(self.ended, self._ended_message)
        self._credited = self._done_seq
        exact = self._exact or not self._restored
        told = Resumed(
            self.opened.session,
            self.token,
            self._inbox.next_seq,
            self._inbox.next_pts,
            received,
            exact,
            "store" if self._restored else "memory",
            self.opened.window,
            "" if exact else self._why,
        )
        return attachment, told

    def detached(self, attachment: Attachment) -> None:
        """A client is gone; nothing where another one has taken over."""
        if self._attachment is attachment:
            self._attachment = None
            self.detached_at = self._loop.time()
            self.checkpoint()

    # ----- of the service

    @property
    def info_packet(self) -> bytes:
        """What comes out; b"" while that is not known."""
        return self._packets.info_packet

    async def is_ours(self) -> bool:
        """Whether no other server has gone on with it meanwhile."""
        return await self._keeper.is_ours()

    @property
    def over(self) -> bool:
        """Whether it takes nothing more: it has ended, or is about to for the server's end."""
        return bool(self.ended) or self._leaving

    @property
    def attached(self) -> bool:
        return self._attachment is not None

    def notify(self, notice: FromServer | bytes, instead: str = "") -> None:
        """Tells the client that is attached, if one is; see Attachment.notify."""
        if self._attachment is not None:
            self._attachment.notify(notice, instead)

    def checkpoint(self) -> None:
        """Has the stream written to the store as soon as can be."""
        self._keeper.soon()
        self.look()

    def look(self) -> None:
        """Has the task see whether the stream is due to be written."""
        if self._keeper.due:
            self._inbox.came.set()

    def end(self, code: str, message: str) -> None:
        """Ends it at once, for a reason; what waits is not taken any more."""
        if self.ended:
            return
        self.ended, self._ended_message = code, message
        if self._attachment is not None:
            self._attachment.end(code, message)
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._inbox.end()

    async def aclose(self, *, keep: bool = False) -> None:
        """Gives its places back.

        Args:
            keep: Whether it is written to the store first, for others to go on with.
        """
        if keep and not self.ended:
            await self._kept()
        self.end("ending", "the server ends")
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        if keep or self.ended in ("engine_gone", "taken_over", "ending"):
            await self._keeper.finish()
        else:
            await self._keeper.drop()
        self._coder.close()
        await asyncio.to_thread(self._input.close)

    async def _kept(self) -> None:
        """What came is taken, for a while at most, and then the stream is written down."""
        self._leaving, self._ended_message = True, "the server ends"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WRITE_SECONDS):
                await self._idle.wait()
        if self._task is None or not self._idle.is_set():
            return  # in the middle of something: it was written before
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if not self.ended:
            await self._keeper.write(self._record)

    # ----- the task

    async def _run(self) -> None:
        try:
            while True:
                if self._keeper.due:
                    await self._keeper.write(self._record)
                waiting = self._inbox.take()
                if waiting is None:
                    self._idle.set()
                    await self._inbox.came.wait()
                    continue
                self._idle.clear()
                waiting = await self._take(waiting)
                self._done_seq, self._done_pts = waiting.seq + 1, waiting.end_pts
                self._keeper.changed = True
                self._give_credit()
                if isinstance(waiting.message, Close):
                    self._coder.close()
                    return
        except TransportError as error:
            self.end("engine_gone", str(error))
        except StreamencError as error:
            # What was checked before it was taken is refused nevertheless: nobody is told more
            # than that, as it is not about one packet any more.
            self.end("bad_packet", str(error))
        except Exception:
            logger.exception("stream %s failed", self.opened.session)
            self.end("internal", "the server failed at this stream; open another one")

    async def _take(self, waiting: Waiting) -> Waiting:
        """Does what a message says; gives the last one that was taken."""
        message = waiting.message
        if isinstance(message, Data):
            if waiting.gap and not message.discontinuity:
                message = replace(message, discontinuity=True)
            return await self._encode(waiting, message)
        if isinstance(message, Flush):
            await self._finish()
            await self._tell(Flushed(waiting.end_pts, self.outbox.next))
        elif isinstance(message, Mark):
            await self._tell(Marked(message.id, waiting.end_pts, self.outbox.next))
        elif isinstance(message, Set):
            if message.codebooks is not UNSET:
                self._coder.codebooks = message.codebooks
            if message.vad is not UNSET:
                await self._tell_speech(await self._speech.switch(message.vad))
            await self._tell(WasSet(self._coder.codebooks, self.outbox.next))
        elif isinstance(message, TakeSnapshot):
            await self._hand_out(waiting)
        else:
            await self._finish()
            self._put(Closed(self.outbox.next, self.packets, self._done_pts * self._tick_seconds))
            self.ended, self._ended_message = "closed", "the client closed it"
            if self._attachment is not None:
                self._attachment.end("closed", self._ended_message)
        return waiting

    async def _encode(self, waiting: Waiting, data: Data) -> Waiting:
        """A packet, and those that wait behind it and follow on: one step costs less than many.
        Gives the last one."""
        began, first_ns = time.monotonic_ns(), waiting.arrived_ns
        try:
            if self._input.slow:
                chunks = await asyncio.to_thread(self._input.push, data)
            else:
                chunks = self._input.push(data)
        except InputError as error:  # which only decoding tells: the others go on without it
            self._inbox.leave_out()
            self._input_dropped()
            self.notify(Error("bad_packet", str(error), seq=waiting.seq))
            return waiting
        count = 1
        while count < MAX_TOGETHER and (following := self._inbox.take_following()) is not None:
            assert isinstance(following.message, Data)
            chunks += self._input.push(following.message)
            waiting, count = following, count + 1
        for chunk in joined(chunks):
            await self._push(chunk, waiting.arrived_ns)
        took = (time.monotonic_ns() - first_ns) / 1e9
        lasts = (waiting.end_pts - self._done_pts) * self._tick_seconds
        meter = self._service.meter
        meter.waited((began - first_ns) / 1e9)
        meter.stepped(self.opened.model, took, late=0 < lasts < took)
        return waiting

    async def _push(self, chunk: Chunk, arrived_ns: int) -> None:
        for piece in await self._speech.hear(chunk):
            if isinstance(piece, Chunk):
                await self._emit(await self._coder.push(piece, arrived_ns))
            else:
                await self._tell_speech([piece])

    async def _finish(self) -> None:
        """The model's stream ends: what the input holds back, and the tail."""
        slow = self._input.slow
        chunks = await asyncio.to_thread(self._input.flush) if slow else self._input.flush()
        for chunk in chunks:
            await self._push(chunk, time.monotonic_ns())
        await self._tell_speech(self._speech.end())
        await self._emit(await self._coder.flush())

    async def _emit(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            if self._packets.info is None and self._coder.info is not None:
                self._packets.describe(self._coder.info)
            self.outbox.put(frame, self._packets.packet(frame))
            self.packets += 1
            self._items += frame.data.shape[1]
            await self._make_room()

    async def _make_room(self) -> None:
        if dropped := await self.outbox.make_room(self._asked.policy):
            self._service.meter.dropped("output", dropped)
            self._lossy()

    def _put(self, event: Numbered, before: bytes = b"") -> None:
        self.outbox.put(event, encode_message(event), before)

    async def _tell(self, event: Numbered, before: bytes = b"") -> None:
        """An event, which no policy drops: where they are too many, the stream waits."""
        self._put(event, before)
        await self._make_room()
        await self.outbox.room()

    async def _tell_speech(self, told: Iterable[SpeechTold]) -> None:
        for each in told:
            await self._tell(Speech(each.event, each.pts, self.outbox.next))

    def _give_credit(self) -> None:
        """Tells the client what may come, whenever it is through with a quarter of that."""
        if self._done_seq - self._credited >= max(1, self.opened.window // 4):
            self._credited = self._done_seq
            credit = Credit(0, self._done_seq, self.opened.window)
            self.notify(encode_credit(credit), instead="credit")
            if self._service.store is None:  # what this process has is all there ever is
                self.notify(Ack(self._done_seq, self._done_pts), instead="ack")

    def _input_dropped(self) -> None:
        self._service.meter.dropped("input", 1)
        self._put(Dropped("input", 1, self._inbox.dropped, self.outbox.next))
        self._lossy()

    def _lossy(self) -> None:
        self._exact = False
        self._why = "packets were dropped by the stream's policy, and may be others this time"

    # ----- writing it down

    async def _record(self) -> StreamRecord:
        kept_input = self._input.state()
        return StreamRecord(
            session=self.opened.session,
            owner=self.owner,
            fingerprint=self.opened.fingerprint,
            born_unix_ns=self._packets.born_unix_ns,
            asked=self._asked,
            seq=self._done_seq,
            pts=self._done_pts,
            n=self.outbox.next,
            packets=self.packets,
            items=self._items,
            kept_from=self.outbox.kept_from,
            unacknowledged=list(map(kept, self.outbox.unacknowledged())),
            info=self.info_packet,
            stages=await self._coder.state(),
            codebooks=self._coder.codebooks,
            input=kept_input,
            exact=self._exact and self._input.exact,
            why=self._why or self._input.why,
            watch=self._speech.state(),
            watching=self._speech.on,
            layout=self._coder.layout,
        )

    async def _hand_out(self, waiting: Waiting) -> None:
        record = await self._record()
        here = {"seq": waiting.seq + 1, "pts": waiting.end_pts, "owner": ""}
        record = msgspec.structs.replace(record, unacknowledged=[], info=b"", **here)
        blob = await asyncio.to_thread(record.to_bytes)
        try:
            packet = encode_snapshot(StreamSnapshot(0, blob))
        except FitError as error:
            self.notify(Error("too_big", str(error), seq=waiting.seq))
            return
        event = SnapshotTaken(waiting.seq + 1, waiting.end_pts, self.outbox.next, len(blob))
        await self._tell(event, packet)

    async def restore(self, record: StreamRecord, *, numbered: bool) -> None:
        """Goes on from what was written; before `start`.

        Args:
            numbered: Whether it is the same stream as before, with its numbers and what its client
                had not acknowledged.

        Raises:
            SnapshotError: Where it is of other models, or cannot be.
        """
        kept_input = record.input_for(self.opened.fingerprint)
        self._coder.codebooks = record.codebooks
        await self._coder.restore(record.stages)
        self._coder.layout = record.layout
        await asyncio.to_thread(self._input.restore, kept_input)
        self._exact, self._why = record.exact, record.why
        if anew := await self._speech.restore(record.watch, record.watching):
            self._exact, self._why = False, anew
        self._inbox.next_seq = self._done_seq = self._credited = record.seq
        self._inbox.next_pts = self._done_pts = record.pts
        if numbered:
            self.packets, self._items = record.packets, record.items
            self._packets.born_unix_ns = record.born_unix_ns
            self.outbox.restore(record.messages(), record.n, record.kept_from)
            self._packets.info_packet = record.info  # of what is kept; of images, all that tells
        if self._coder.info is not None:
            self._packets.describe(self._coder.info)
