"""RtcPeer: one WebRTC peer: sound or images of a track into a LiveStream, and what comes out of it
over a data channel."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import aiortc
import msgspec
import numpy as np
from aiortc.exceptions import InvalidStateError
from aiortc.mediastreams import MediaStreamError

from streamenc.errors import StreamencError, UsageError, WireError
from streamenc.io.network.websocket.livemessages import (
    SUBPROTOCOL,
    Ack,
    Close,
    Error,
    Flush,
    Mark,
    Open,
    Opened,
    Ordered,
    Set,
    encode_message,
    read_from_client,
)
from streamenc.io.network.wire import HEADER_BYTES, Data
from streamenc.serve.adapters.soundpackets import SoundPackets
from streamenc.serve.service import Service
from streamenc.serve.streams.attachment import Attachment
from streamenc.serve.streams.livestream import LiveStream
from streamenc.serve.streams.outbox import Sent

IMAGE_TICKS = 90_000  # a second, of RTP and of `pts`
# Images that lie further apart have something missing between them; cameras are irregular.
IMAGE_GAP_TICKS = IMAGE_TICKS
# Of sound that was decoded and not taken yet, 20 ms each; images wait in the stream alone.
MAX_WAITING = 64
MAX_MESSAGES = 64  # of the client, that were not read yet
WINDOW = 256
# What a data channel may hold before more is given to it.
BUFFERED_BYTES = 128 * 2**10
LINGER_SECONDS = 2.0  # for the last messages to arrive


class _Ended(Exception):
    """Why a peer is closed: a code of docs/server; "" where nobody is left to be told."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class RtcPeer:
    """One peer.

    Args:
        kind: What the model takes, "audio" or "video".
        host: The only address that is offered; "" for all of this machine.
    """

    def __init__(self, service: Service, kind: str, owner: str, host: str) -> None:
        self._service, self._kind, self.owner, self._host = service, kind, owner, host
        self._connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self._changed = asyncio.Event()
        self._drained = asyncio.Event()
        self._channel: Any = None
        self._track: Any = None
        self._sound: asyncio.Queue[tuple[int, np.ndarray[Any, Any], bool]] = asyncio.Queue(
            MAX_WAITING
        )
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue(MAX_MESSAGES)
        self._live: LiveStream | None = None
        self._seq = 0
        self._missed = False
        connection = self._connection
        connection.on("datachannel", self._on_channel)
        connection.on("track", self._on_track)
        connection.on("connectionstatechange", self._changed.set)
        if kind == "audio":
            transceiver = connection.addTransceiver("audio", direction="recvonly")
            capable: Any = aiortc.RTCRtpReceiver.getCapabilities("audio")
            opus = [codec for codec in capable.codecs if codec.mimeType == "audio/opus"]
            transceiver.setCodecPreferences(opus)
            take_packets(transceiver.receiver, SoundPackets(self._on_sound))
        else:
            connection.addTransceiver("video", direction="recvonly")

    async def answer(self, sdp: str) -> str:
        """The answer to an offer.

        Raises:
            ValueError and others: For what is no session description, or has nothing in common
                with what is understood here.
        """
        connection = self._connection
        await connection.setRemoteDescription(aiortc.RTCSessionDescription(sdp, "offer"))
        for transceiver in connection.getTransceivers():
            if transceiver.kind != self._kind:
                transceiver.direction = "inactive"
        if self._track is None:
            raise ValueError(f"it sends no {self._kind}")
        if connection.sctp is None:
            raise ValueError(f"it has no data channel: create one, {SUBPROTOCOL!r}, before it")
        if self._host:
            gather_at(connection, self._host)
        await connection.setLocalDescription(await connection.createAnswer())
        return str(connection.localDescription.sdp)

    async def open(self, asked: Open) -> Opened:
        """Opens its stream. Raises what `Service.open` does."""
        self._live = await self._service.open(asked, self.owner)
        return self._live.opened

    async def run(self) -> None:
        """Until it ends; then all of it is closed. Cancel it to close it."""
        live = self._live
        assert live is not None
        attachment, _ = live.attach(window=WINDOW)
        take = self._take_sound if self._kind == "audio" else self._take_images
        tasks = [
            asyncio.create_task(work)
            for work in (take(live), self._send(live, attachment), self._obey(live), self._watch())
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        except _Ended as ended:
            await self._say(ended)
        except StreamencError as error:
            await self._say(_Ended(attachment.ended or "bad_packet", str(error)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.aclose()

    async def aclose(self) -> None:
        """Closes the connection, and ends the stream."""
        try:
            await _close(self._connection)
        finally:
            if self._live is not None:
                live, self._live = self._live, None
                await self._service.forget(live)

    # ----- what the connection calls

    def _on_track(self, track: Any) -> None:
        if track.kind == self._kind and self._track is None:
            self._track = track

    def _on_channel(self, channel: Any) -> None:
        if channel.label != SUBPROTOCOL or self._channel is not None:
            return
        self._channel = channel
        channel.bufferedAmountLowThreshold = BUFFERED_BYTES // 2
        channel.on("bufferedamountlow", self._drained.set)
        channel.on("message", self._on_message)
        channel.on("close", self._changed.set)
        self._changed.set()

    def _on_message(self, message: str | bytes) -> None:
        try:
            self._messages.put_nowait(message)
        except asyncio.QueueFull:
            with contextlib.suppress(asyncio.QueueEmpty):
                self._messages.get_nowait()
            self._messages.put_nowait(None)

    def _on_sound(self, pts: int, samples: np.ndarray[Any, Any], missing: bool) -> None:
        try:
            self._sound.put_nowait((pts, samples, missing or self._missed))
            self._missed = False
        except asyncio.QueueFull:
            self._missed = True  # the event loop is far behind

    # ----- into the stream

    async def _take_sound(self, live: LiveStream) -> None:
        """Sound comes decoded; the track itself only tells that it ended."""
        ended = asyncio.create_task(self._track.recv())
        try:
            while True:
                getting = asyncio.create_task(self._sound.get())
                try:
                    done, _ = await asyncio.wait(
                        {getting, ended},
                        timeout=self._service.limits.idle_seconds or None,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                finally:
                    if not getting.done():
                        getting.cancel()
                if getting in done:
                    pts, samples, missing = getting.result()
                    await self._put(live, pts, samples.shape[1], missing, samples)
                elif ended in done:
                    break
                else:
                    self._idle()
        finally:
            ended.cancel()
            with contextlib.suppress(asyncio.CancelledError, MediaStreamError):
                await ended
        await self._over(live)

    async def _take_images(self, live: LiveStream) -> None:
        most = live.opened.max_message_bytes
        last = None
        while True:
            try:
                async with asyncio.timeout(self._service.limits.idle_seconds or None):
                    frame = await self._track.recv()
            except TimeoutError:
                self._idle()
            except MediaStreamError:
                break
            pts = round(frame.pts * frame.time_base * IMAGE_TICKS)
            if last is not None and pts <= last:
                continue
            missing = last is not None and pts - last > IMAGE_GAP_TICKS
            last = pts
            image = await asyncio.to_thread(pixels, frame, most)
            await self._put(live, pts, 0, missing, image)
        await self._over(live)

    async def _put(
        self, live: LiveStream, pts: int, duration: int, missing: bool, data: np.ndarray[Any, Any]
    ) -> None:
        # Messages of the client are ordered between what its track brings.
        seq, self._seq = self._seq, self._seq + 1
        await self._into(live, Data(0, 0, seq, pts, duration, missing, 0, 1.0, data))

    def _idle(self) -> None:
        seconds = self._service.limits.idle_seconds
        raise _Ended("idle", f"nothing came on the track for {seconds:g} s")

    async def _over(self, live: LiveStream) -> None:
        """The track has ended: so does the stream, and its tail comes out."""
        await self._order(live, Close())
        await asyncio.Event().wait()

    async def _order(self, live: LiveStream, message: Ordered) -> None:
        self._seq += 1
        await self._into(live, message)

    async def _into(self, live: LiveStream, message: Data | Ordered) -> None:
        try:
            await live.put(message)
        except UsageError:
            if not live.over:
                raise
            await asyncio.Event().wait()  # who sends tells why, as soon as it is known

    async def _obey(self, live: LiveStream) -> None:
        """What the client says."""
        while True:
            text = await self._messages.get()
            if text is None:
                raise _Ended("too_slow", f"more than {MAX_MESSAGES} messages came at once")
            if isinstance(text, bytes):
                raise _Ended("bad_message", "got a packet; here the track brings what goes in")
            try:
                message = read_from_client(text)
            except WireError as error:
                raise _Ended("bad_message", str(error)) from None
            if not isinstance(message, Flush | Mark | Set | Close):
                kind = type(message).__name__.lower()
                raise _Ended("bad_message", f"got {kind}; wanted flush, mark, set or close")
            try:
                await self._order(live, msgspec.structs.replace(message, seq=None))
            except StreamencError as error:
                self._seq -= 1
                await self._give(encode_message(Error("bad_message", str(error))))

    # ----- out of it

    async def _send(self, live: LiveStream, attachment: Attachment) -> None:
        while self._channel is None:
            await self._until_changed()
        # Nobody resumes it: the token stays here.
        await self._give(encode_message(msgspec.structs.replace(live.opened, token="")))
        async for item in attachment:
            packet: Any = item.packet if isinstance(item, Sent) else item
            if isinstance(packet, Ack) or _is_credit(packet):
                continue  # of what the client does not send
            if isinstance(packet, msgspec.Struct):
                packet = encode_message(packet)  # type: ignore[arg-type]
            await self._give(packet)
            self._service.meter.moved("out", len(packet))
            if isinstance(item, Sent):
                attachment.credit(item.n + 1, WINDOW)
        raise _Ended(attachment.ended, attachment.message)

    async def _give(self, packet: bytes | str) -> None:
        channel = self._channel
        while channel.bufferedAmount > BUFFERED_BYTES:
            self._drained.clear()
            await self._drained.wait()
        try:
            channel.send(packet)
        except InvalidStateError:
            raise _Ended("", "the data channel is closed") from None
        except ValueError as error:  # longer than its other end takes
            raise _Ended("too_big", f"{error}; use /v1/stream for this model") from None

    async def _say(self, ended: _Ended) -> None:
        """The last words, and time for them to arrive."""
        if not ended.code or self._channel is None:
            return
        if ended.code != "closed":
            with contextlib.suppress(InvalidStateError):
                self._channel.send(encode_message(Error(ended.code, ended.message, fatal=True)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._connection.connectionState == "connected":
                    if self._channel.readyState != "open":
                        break
                    await self._until_changed()

    async def _watch(self) -> None:
        """Whether the connection comes, and then lasts."""
        try:
            async with asyncio.timeout(self._service.limits.handshake_seconds):
                while self._channel is None or self._connection.connectionState != "connected":
                    self._look()
                    await self._until_changed()
        except TimeoutError:
            raise _Ended("", "no connection came") from None
        while True:
            self._look()
            await self._until_changed()

    def _look(self) -> None:
        gone = self._connection.connectionState in ("failed", "closed")
        if gone or (self._channel is not None and self._channel.readyState == "closed"):
            raise _Ended("", "the peer is gone")

    async def _until_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def pixels(frame: Any, max_bytes: int) -> np.ndarray[Any, Any]:
    """RGB (3, 1, height, width) of a frame, made smaller where it takes more than `max_bytes`."""
    scale = min(1.0, (max_bytes / (3 * frame.width * frame.height)) ** 0.5)
    if scale < 1:
        width, height = int(frame.width * scale), int(frame.height * scale)
        frame = frame.reformat(width=max(1, width), height=max(1, height), format="rgb24")
    rgb = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(rgb.transpose(2, 0, 1)[:, None])


async def _close(connection: Any) -> None:
    """Closes also what an offer that failed half-way left without its transports."""
    try:
        await connection.close()
    except AttributeError:  # aiortc stops transports without looking whether there are any
        parts = [transceiver.receiver for transceiver in connection.getTransceivers()]
        for part in (*parts, connection.sctp):
            if part is not None and part.transport is not None:
                await part.transport.stop()
                await part.transport.transport.stop()


def take_packets(receiver: Any, packets: SoundPackets) -> None:
    """Has aiortc hand a receiver's packets to `packets`."""
    name = "_RTCRtpReceiver__jitter_buffer"
    if not hasattr(receiver, name):
        raise RuntimeError(f"aiortc {aiortc.__version__} keeps its packets elsewhere")
    setattr(receiver, name, packets)


def gather_at(connection: Any, host: str) -> None:
    """Has a connection listen at one address alone, where aiortc would at all but loopback."""
    transports = {connection.sctp.transport.transport}
    transports |= {t.receiver.transport.transport for t in connection.getTransceivers()}
    for transport in transports:
        ice = transport.iceGatherer._connection
        gather = ice.get_component_candidates
        ice.get_component_candidates = partial(_only, gather, host)


async def _only(gather: Any, host: str, component: int, addresses: list[str], **more: Any) -> Any:
    return await gather(component, [host], **more)


def _is_credit(packet: Any) -> bool:
    return isinstance(packet, bytes) and packet[HEADER_BYTES - 1 : HEADER_BYTES] == b"C"
