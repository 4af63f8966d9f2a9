"""Token streams over an MQTT 5 broker: `mqtt://[user:password@]host[:port]/topic`, or `mqtts://`.

The broker keeps what the stream is (`topic/info`, retained), so one can join at any time; frames go
to `topic/data`. docs/io/wire.md describes both. A broker that goes away and comes back is connected
to again. With qos=1 at both ends, one that keeps its sessions over a restart loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import anyio

from streamenc import options
from streamenc.errors import InputError, TransportError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink
from streamenc.io.network.mqtt_client import (
    FAILURES,
    NOBODY_SUBSCRIBED,
    Client,
    PacketTypes,
    reason,
)
from streamenc.io.network.mqtt_link import Broker, MqttError
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.packetsource import PacketSource, end_task
from streamenc.io.network.wire import least_bytes

if TYPE_CHECKING:
    import aiomqtt

logger = logging.getLogger(__name__)

BEAT_S = 1.0
LINGER_S = 2.0
BLOCK_S = 2.0
IN_FLIGHT = 8
# Connections that may break over one packet: a broker hangs up on what it finds too large.
MAX_TRIES = 3
# After a break, frames wait so long for subscribers that the broker may have forgotten.
RETURN_S, ASK_AGAIN_S = 5.0, 0.1
# What MQTT adds to a packet beside the topic.
HEAD_BYTES = 16


@dataclass(slots=True, eq=False)
class _Waiting:
    frame: Frame
    packet: bytes
    since_ns: int
    tries: int = 0


class MqttSink(Sink):
    """Publishes a stream to a broker.

    address    mqtt://[user:password@]host[:1883]/topic or mqtts://...[:8883]/topic.
    qos        0: while the broker is away, frames are dropped. 1: the broker acknowledges each
               frame, and while it is away up to `queue` of them wait; `write` waits 2 s for room
               in there, then drops.
    client_id  Our name at the broker, for itself alone; a random one where this is "".
    keepalive  Seconds after which a silent connection is tested.
    ca_file    mqtts: certificates to trust; the system's where "".
    cert_file, key_file  mqtts: our own certificate and key.
    insecure   mqtts: trusts anybody.
    queue      Frames that may wait for the broker.
    max_age_ms  Frames that waited for the broker for longer are dropped, counted, and the next one
               flagged; 0 drops none.

    `dropped` counts the frames that never reached the broker, as far as that is known, `unheard`
    those of which it said that nobody was subscribed.
    """

    def __init__(
        self,
        address: str,
        qos: int | str = 0,
        client_id: str = "",
        keepalive: int | str = 15,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        insecure: bool | str = False,
        queue: int | str = 256,
        max_age_ms: float | str = 0.0,
    ) -> None:
        self._qos = options.integer("qos", qos, 0, 1)
        self._bound = options.integer("queue", queue, IN_FLIGHT, 1_000_000)
        self._max_age_ms = options.number("max_age_ms", max_age_ms, 0.0, 86_400_000.0)
        self._broker = Broker(address, client_id, keepalive, ca_file, cert_file, key_file, insecure)
        self._queue: deque[_Waiting] = deque()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._connected = False
        self._closing = self._told = self._cut = False
        self._task: asyncio.Task[None] | None = None
        self._taken = self._longest = self.unheard = 0
        self._heard, self._back_s, self._beat_s = False, 0.0, 0.0
        self._losses: Counter[str] = Counter()

    async def open(self, info: StreamInfo) -> None:
        self._writer = PacketWriter(info, self.clock)
        try:
            client = await self._broker.connect(self._greet, will=True)
        except MqttError as error:
            raise self._broker.explained(error) from None
        self._connected = True
        self._task = asyncio.create_task(self._run(client))
        self._task.add_done_callback(lambda _: self._room.set())
        if self._is_too_long(least_bytes(info)):
            raise TransportError(
                f"cannot send {info}: each frame takes {least_bytes(info)} bytes or more, "
                f"{self._size_limit()}"
            )

    async def write(self, frame: Frame) -> None:
        assert self._task is not None, "write before open"
        if self._task.done():
            self._told = True
            self._task.result()
        packet = self._writer.packet(frame)
        if self._is_too_long(len(packet)):
            if not (self._taken or self._queue):
                raise InputError(
                    f"cannot send {frame!r}: it takes {len(packet)} bytes, {self._size_limit()}"
                )
            self._refuse(frame, f"as they were too long, {self._size_limit()}")
        elif await self._has_room():
            self._queue.append(_Waiting(frame, packet, time.monotonic_ns()))
            self._writer.sent(frame)
            self._changed.set()
        elif self._qos:
            self._refuse(frame, f"as {self._bound} waited for the broker already; raise 'queue'")
        else:
            self._refuse(
                frame, "while the broker was away or slow; with qos=1, 'queue' of them wait"
            )

    async def aclose(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        self._closing = True
        self._changed.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait({task}, timeout=LINGER_S)
            await end_task(task)
        if self._queue:
            self._lose("as the broker was away, or slow, when the stream was closed", self._queue)
        self._cut = task.cancelled()
        self._tell()
        if not (self._told or self._cut):
            task.result()

    def _is_too_long(self, packet_bytes: int) -> bool:
        topic_bytes = len(self._broker.data_topic.encode())
        return packet_bytes + topic_bytes + HEAD_BYTES > self._broker.limits.packet_bytes

    def _size_limit(self) -> str:
        return (
            f"and the broker takes messages of up to {self._broker.limits.packet_bytes} bytes; "
            "raise its limit (mosquitto: max_packet_size), or send smaller or shorter frames"
        )

    def _refuse(self, frame: Frame, why: str) -> None:
        """Drops a frame that does not even wait."""
        self._writer.dropped(frame)
        self._lose(why, (frame,))

    def _give_up(self, waiting: _Waiting, why: str) -> None:
        """Drops a frame that waited: the next one of its track gets flagged."""
        track = waiting.frame.track
        for later in self._queue:
            if later.frame.track == track and later is not waiting:
                later.packet = self._writer.after_gap(
                    later.frame, time.monotonic_ns() - later.since_ns
                )
                break
        else:
            self._writer.lost(track)
        self._lose(why, (waiting,))

    def _lose(self, why: str, frames: deque[_Waiting] | tuple[object, ...]) -> None:
        self.dropped += len(frames)
        self._losses[why] += len(frames)
        self._tell()

    def _tell(self) -> None:
        told = [f"{count} frames were dropped {why}" for why, count in self._losses.items()]
        if self.unheard:
            told.append(
                f"the broker said of {self.unheard} frames that nobody was subscribed; start the "
                "subscriber first"
            )
        if self._cut:
            told.append(f"the broker did not take the end of the stream within {LINGER_S:g} s")
        if not self._broker.limits.retain:
            told.append(
                "the broker retains nothing: what the stream is was repeated every second, and who "
                "joined waited for that"
            )
        self.remarks = [*self._broker.remarks, *told]

    async def _has_room(self) -> bool:
        if self._qos == 0:
            return self._connected and len(self._queue) < self._bound
        with anyio.move_on_after(BLOCK_S):
            while len(self._queue) >= self._bound and self._task and not self._task.done():
                self._room.clear()
                await self._room.wait()
        return len(self._queue) < self._bound

    async def _greet(self, client: Client) -> None:
        """Says what the stream is. Raises MqttError, TransportError."""
        if self._qos > client.limits.qos:
            raise TransportError(
                f"the broker of {self._broker.name} takes no quality of service 1; write qos=0"
            )
        code = await self._describe(client)
        if code >= FAILURES:
            raise TransportError(
                f"the broker refuses to publish {self._broker.info_topic}: "
                f"{reason(code, PacketTypes.PUBACK)}; may this user publish there?"
            )
        self._tell()

    async def _describe(self, client: Client) -> int:
        self._beat_s = time.monotonic() + BEAT_S
        limits = client.limits
        return await client.send(
            self._broker.info_topic, self._writer.info, min(1, limits.qos), limits.retain
        )

    async def _run(self, client: Client) -> None:
        while True:
            lost = asyncio.create_task(_watch(client))
            lost.add_done_callback(lambda _: self._changed.set())
            try:
                await self._drain(client, lost)
                return
            except MqttError as error:
                self._broker.lost(error)
                self._tell()
                self._drop_what_fails()
            finally:
                self._connected = False
                await end_task(lost)
                await client.hang_up()
            client = await self._broker.reconnect(self._greet, will=True)
            self._connected = True
            self._back_s = time.monotonic()

    def _drop_what_fails(self) -> None:
        if self._queue and self._queue[0].tries >= MAX_TRIES:
            waiting = self._queue.popleft()
            why = f"the broker hung up {MAX_TRIES} times when they came; has it a limit of size?"
            if not self._taken:
                raise TransportError(
                    f"no frame of {len(waiting.packet)} bytes gets through to {self._broker.name}: "
                    f"{why}"
                )
            self._give_up(waiting, f"as {why}")

    async def _drain(self, client: Client, lost: asyncio.Task[None]) -> None:
        while True:
            self._changed.clear()
            if lost.done():
                lost.result()
            if not client.limits.retain and time.monotonic() >= self._beat_s:
                await self._describe(client)
            self._drop_what_is_stale()
            if self._queue:
                await self._publish(client)
                self._room.set()
            elif self._closing:
                qos = min(1, client.limits.qos)  # whatever the frames have: nothing repeats it
                await client.send(self._broker.data_topic, self._writer.end(self.broken), qos)
                await client.send(self._broker.info_topic, b"", qos, client.limits.retain)
                return
            else:
                with anyio.move_on_after(None if client.limits.retain else BEAT_S):
                    await self._changed.wait()

    def _drop_what_is_stale(self) -> None:
        if not self._max_age_ms:
            return
        born_ns = time.monotonic_ns() - round(1e6 * self._max_age_ms)
        while self._queue and self._queue[0].since_ns < born_ns:
            waiting = self._queue.popleft()
            why = f"as they waited for the broker for longer than max_age_ms={self._max_age_ms:g}"
            self._give_up(waiting, why)

    async def _publish(self, client: Client) -> None:
        """Publishes some of the queue at once. What was not acknowledged stays in there."""
        head = self._queue[0]
        # Whoever was subscribed when the connection broke may need a moment more than we did.
        waits = self._qos == 1 and self._heard and time.monotonic() < self._back_s + RETURN_S
        waits = waits and not self._closing
        # After a break one by one, so that no packet is blamed for another.
        alone = waits or head.tries > 0
        batch = list(islice(self._queue, 1 if alone else min(IN_FLIGHT, client.limits.in_flight)))
        for waiting in batch:
            waiting.tries += 1
        answers = await asyncio.gather(
            *(
                client.send(self._broker.data_topic, waiting.packet, self._quality(client, waiting))
                for waiting in batch
            ),
            return_exceptions=True,
        )
        if waits and answers[0] == NOBODY_SUBSCRIBED:
            head.tries = 0
            await asyncio.sleep(ASK_AGAIN_S)
            return
        for _ in batch:
            self._queue.popleft()
        failed = [a if isinstance(a, BaseException) else None for a in answers]
        again = [w for w, failure in zip(batch, failed, strict=True) if failure is not None]
        self._queue.extendleft(reversed(again))
        for waiting, answer in zip(batch, answers, strict=True):
            if not isinstance(answer, BaseException):
                self._answered(waiting, answer)
        for failure in failed:
            if failure is not None:
                raise failure

    def _quality(self, client: Client, waiting: _Waiting) -> int:
        """At quality of service 0 a broker never says what it does not take, be it too long or not
        allowed. So each frame that is longer than all before it asks for an answer.
        """
        asks = len(waiting.packet) > self._longest
        return max(self._qos, min(1, client.limits.qos)) if asks else self._qos

    def _answered(self, waiting: _Waiting, code: int) -> None:
        if code >= FAILURES:
            why = reason(code, PacketTypes.PUBACK)
            if not self._taken:
                raise TransportError(
                    f"the broker refuses to publish a frame of {len(waiting.packet)} bytes at "
                    f"{self._broker.data_topic}: {why}; may this user publish there, and messages "
                    "of that size?"
                )
            self._give_up(waiting, f"as the broker refused them: {why}")
            return
        self._taken += 1
        self._longest = max(self._longest, len(waiting.packet))
        self._heard = code != NOBODY_SUBSCRIBED
        if not self._heard:
            self.unheard += 1
            self._tell()


async def _watch(client: Client) -> None:
    """Raises MqttError when the connection breaks."""
    async for _ in client.messages:
        pass


class MqttSource(PacketSource):
    """Subscribes to a stream at a broker. Options as in MqttSink; besides:

    qos        The most that is asked for; the publisher's own choice holds where it is less.
    queue      Messages that may wait here. With qos=1 the broker keeps what comes above; else it is
               lost, and counted by its gap.
    timeout_s  `open` waits so long for a stream.
    max_age_ms  Frames that took so much longer to get here, and be taken, than the quickest of
               the last minutes are dropped and counted, and the next one is flagged; 0 drops
               none, however far this end falls behind.
    session_s  qos=1: seconds for which the broker keeps what comes while this end is away.
    """

    live = True

    def __init__(
        self,
        address: str,
        qos: int | str = 1,
        client_id: str = "",
        keepalive: int | str = 15,
        ca_file: str = "",
        cert_file: str = "",
        key_file: str = "",
        insecure: bool | str = False,
        queue: int | str = 256,
        timeout_s: float | str = 30.0,
        max_age_ms: float | str = 0.0,
        session_s: int | str = 600,
    ) -> None:
        self._qos = options.integer("qos", qos, 0, 1)
        self._incoming = options.integer("queue", queue, 1, 1_000_000)
        self._session_s = options.integer("session_s", session_s, 0, 2**31) if self._qos else 0
        self._forgotten = 0
        self._broker = Broker(address, client_id, keepalive, ca_file, cert_file, key_file, insecure)
        self._client: Client | None = None
        cure = "use qos=1 at both ends, read faster, or raise 'queue' and the broker's own limits"
        super().__init__(self._broker.name, timeout_s, max_age_ms, 1, cure)

    async def _connect(self) -> None:
        try:
            self._client = await self._broker.connect(
                self._greet, incoming=self._incoming, session_s=self._session_s
            )
        except MqttError as error:
            raise self._broker.explained(error) from None

    async def _greet(self, client: Client) -> None:
        # The info first: the broker sends what it retained before any data.
        for topic in (self._broker.info_topic, self._broker.data_topic):
            await self._broker.subscribe(client, topic, self._qos)

    async def _pump(self) -> None:
        while self._client is not None:
            try:
                async for message in self._client.messages:
                    await self._receive(self._client, message)
                    if self._reader.ended:
                        return
            except MqttError as error:
                self._broker.lost(error)
                self.remarks = self._sentences()
            await self._client.hang_up()
            self._client = await self._broker.reconnect(
                self._greet, incoming=self._incoming, session_s=self._session_s
            )
            self._forgotten += self._session_s > 0 and not self._client.limits.session

    async def _receive(self, client: Client, message: aiomqtt.Message) -> None:
        if not message.payload and message.topic.value == self._broker.info_topic:
            logger.info("nobody publishes at %s for the time being", self._broker.name)
            self._gone("the publisher went away without an end")
        else:
            while not self._has_room():
                await self._room.wait()
            self._take(bytes(message.payload))
        client.acknowledge(message)

    def _sentences(self) -> list[str]:
        told = [*self._broker.remarks, *super()._sentences()]
        if self._forgotten and self._reader.lost:
            told.append(
                f"{self._forgotten} times the broker had forgotten us when it was back, and what "
                "was published meanwhile; let it keep its sessions (mosquitto: persistence true)"
            )
        return told

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with anyio.CancelScope(shield=True):
                await client.hang_up(for_good=True)
