"""MqttSink: a stream to an MQTT 5 broker, `mqtt://[user:password@]host[:port]/topic`, or `mqtts://`.

The broker keeps what the stream is (`topic/info`, retained), so one can join at any time; frames go
to `topic/data`. docs/io/wire.md describes both. A broker that goes away and comes back is connected
to again. With qos=1 at both ends nothing is lost then, whatever it kept: readers say at
`topic/read` how far they are, and what they have not got is sent again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import anyio

from streamenc import options
from streamenc.errors import InputError, TransportError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink
from streamenc.io.network.mqtt.audience import Audience
from streamenc.io.network.mqtt.backlog import Backlog, Waiting
from streamenc.io.network.mqtt.mqtt_client import (
    FAILURES,
    NOBODY_SUBSCRIBED,
    Client,
    PacketTypes,
    reason,
)
from streamenc.io.network.mqtt.mqtt_link import Broker, MqttError
from streamenc.io.network.packets import PacketWriter
from streamenc.io.network.packetsource import end_task
from streamenc.io.network.wire import least_bytes

logger = logging.getLogger(__name__)

BEAT_S = 1.0
LINGER_S = 2.0
BLOCK_S = 2.0
IN_FLIGHT = 64
MIN_QUEUE = 8
# Connections that may break over one packet: a broker hangs up on what it finds too large.
MAX_TRIES = 3
# After a break, frames wait so long for subscribers that the broker may have forgotten.
RETURN_S, ASK_AGAIN_S = 5.0, 0.1
# At the end, readers have so long to say that they are through.
THROUGH_S = 1.0
# What MQTT adds to a packet beside the topic.
HEAD_BYTES = 16


class MqttSink(Sink):
    """Publishes a stream to a broker.

    address    mqtt://[user:password@]host[:1883]/topic or mqtts://...[:8883]/topic.
    qos        0: while the broker is away, frames are dropped. 1: the broker acknowledges each
               frame, and while it is away up to `queue` of them wait; `write` waits 2 s for room
               in there, then drops. What it acknowledged is kept until the readers that say so
               have it, within the same bounds, and published again when it was away.
    client_id  Our name at the broker, for itself alone; a random one where this is "".
    keepalive  Seconds after which a silent connection is tested.
    ca_file    mqtts: certificates to trust; the system's where "".
    cert_file, key_file  mqtts: our own certificate and key.
    insecure   mqtts: trusts anybody.
    queue      Frames that may wait for the broker, and as many that it may still lose.
    queue_mb   MiB of those.
    password_file  Has the password in its first line.
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
        queue: int | str = 65_536,
        max_age_ms: float | str = 0.0,
        queue_mb: int | str = 64,
        password_file: str = "",
    ) -> None:
        self._qos = options.integer("qos", qos, 0, 1)
        self._bound = options.integer("queue", queue, MIN_QUEUE, 1_000_000)
        self._max_age_ms = options.number("max_age_ms", max_age_ms, 0.0, 86_400_000.0)
        self._broker = Broker(
            address, client_id, keepalive, ca_file, cert_file, key_file, insecure, password_file
        )
        megabytes = options.integer("queue_mb", queue_mb, 1, 1 << 20)
        self._queue = Backlog(self._bound, megabytes << 20)
        self._audience = Audience(self._broker, self._qos > 0)
        self._rejoining = False
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._connected = False
        self._closing = self._told = self._cut = False
        self._task: asyncio.Task[None] | None = None
        self._taken = self._longest = self.unheard = self._perished = 0
        self._heard, self._back_s, self._beat_s = False, 0.0, 0.0
        self._losses: Counter[str] = Counter()

    async def open(self, info: StreamInfo) -> None:
        self._writer = PacketWriter(info, self.clock)
        client = await self._connected_first()
        self._connected = True
        self._task = asyncio.create_task(self._run(client))
        self._task.add_done_callback(lambda _: self._room.set())
        if self._is_too_long(least_bytes(info)):
            raise TransportError(
                f"cannot send {info}: each frame takes {least_bytes(info)} bytes or more, "
                f"{self._size_limit()}"
            )

    async def _connected_first(self) -> Client:
        while True:
            try:
                return await self._broker.connect(self._greet, will=True)
            except MqttError as error:
                if not self._audience.was_cut_off:
                    raise self._broker.explained(error) from None

    async def write(self, frame: Frame) -> None:
        assert self._task is not None, "write before open"
        if self._task.done():
            self._told = True
            self._task.result()
        packet = self._writer.packet(frame)
        if self._is_too_long(len(packet)):
            if not (self._taken or len(self._queue)):
                raise InputError(
                    f"cannot send {frame!r}: it takes {len(packet)} bytes, {self._size_limit()}"
                )
            self._refuse(frame, f"as they were too long, {self._size_limit()}")
        elif await self._has_room():
            self._writer.sent(frame)
            self._queue.add(Waiting(frame, packet, self._writer.through, time.monotonic_ns()))
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
            taken = -1
            while not task.done() and (taken < self._taken or self._rejoining):
                taken = self._taken
                await asyncio.wait({task}, timeout=LINGER_S)
            await end_task(task)
        left = [waiting for waiting in self._queue.waiting if not waiting.acked_ns]
        if left:
            self._lose("as the broker was away, or slow, when the stream was closed", left)
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

    def _give_up(self, waiting: Waiting, why: str) -> None:
        """Drops a frame that waited: the next one of its track gets flagged."""
        track = waiting.frame.track
        for later in self._queue.waiting:
            if later.frame.track == track and later is not waiting:
                later.packet = self._writer.after_gap(
                    later.frame, time.monotonic_ns() - later.since_ns
                )
                break
        else:
            self._writer.lost(track)
        self._lose(why, (waiting,))

    def _lose(self, why: str, frames: Sequence[object]) -> None:
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
        if self._perished:
            told.append(
                f"{self._perished} frames were lost with the broker, which had acknowledged them, "
                "and were not here any more; raise 'queue' and 'queue_mb'"
            )
        if self._cut:
            told.append(f"the broker did not take the end of the stream within {LINGER_S:g} s")
        if not self._broker.limits.retain:
            told.append(
                "the broker retains nothing: what the stream is was repeated every second, and who "
                "joined waited for that"
            )
        self.remarks = [*self._broker.remarks, *told, *self._audience.sentences]

    async def _has_room(self) -> bool:
        if self._qos == 0:
            return self._connected and self._queue.has_room()
        with anyio.move_on_after(BLOCK_S):
            while not self._queue.has_room() and self._task and not self._task.done():
                self._room.clear()
                await self._room.wait()
        return self._queue.has_room()

    async def _greet(self, client: Client) -> None:
        """Says what the stream is. Raises MqttError, TransportError."""
        if self._qos > client.limits.qos:
            raise TransportError(
                f"the broker of {self._broker.name} takes no quality of service 1; write qos=0"
            )
        await self._audience.listen(client)
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
            lost = asyncio.create_task(self._watch(client))
            lost.add_done_callback(lambda _: self._changed.set())
            try:
                await self._drain(client, lost)
                return
            except MqttError as error:
                self._broker.lost(error)
                self._tell()
                self._drop_what_fails()
            finally:
                self._connected = self._rejoining = False
                self._audience.away()
                await end_task(lost)
                await client.hang_up()
            client = await self._broker.reconnect(self._greet, will=True)
            self._connected = True
            self._back_s = time.monotonic()
            self._rejoining = self._qos > 0
            if not self._broker.at_once:  # it was down: it did not hang up on what we sent
                for waiting in islice(self._queue.waiting, IN_FLIGHT):
                    waiting.tries = 0

    def _drop_what_fails(self) -> None:
        if len(self._queue) and self._queue.waiting[0].tries >= MAX_TRIES:
            waiting = self._queue.pop()
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
            beats = self._audience.overwritten or not client.limits.retain
            if beats and time.monotonic() >= self._beat_s:
                self._audience.overwritten = False
                await self._describe(client)
            self._drop_what_is_stale()
            if not self._rejoining:
                self._queue.forget(self._audience.through())
            if (self._rejoining and not self._is_rejoined()) or (
                self._audience.is_behind(self._queue.acked)
            ):
                with anyio.move_on_after(ASK_AGAIN_S):
                    await self._changed.wait()
            elif len(self._queue):
                await self._publish(client)
                self._room.set()
            elif self._closing:
                await self._finish(client)
                return
            else:
                with anyio.move_on_after(BEAT_S):
                    await self._changed.wait()

    def _is_rejoined(self) -> bool:
        """Whether the readers of before the break are back, or are given up; then what they have
        not got is sent again.
        """
        wait_s = RETURN_S
        if self._max_age_ms:  # what waits may not get old by that alone
            wait_s = min(wait_s, self._max_age_ms / 2e3)
        if not self._audience.all_back() and time.monotonic() < self._back_s + wait_s:
            return False
        self._rejoining = False
        self._audience.drop_missing()
        perished = self._queue.rewind(self._audience.through())
        if perished:
            self._perished += perished
            self._tell()
        return True

    async def _finish(self, client: Client) -> None:
        """Says that the stream ends; what a broker loses now, is sent again by `_run`."""
        qos = min(1, client.limits.qos)  # whatever the frames have: nothing repeats it
        self._audience.away()
        await client.send(self._broker.data_topic, self._writer.end(self.broken), qos)
        with anyio.move_on_after(THROUGH_S):
            while not (self._audience.all_back() and self._are_through()):
                self._changed.clear()
                await self._changed.wait()
                if client.broken:
                    raise MqttError("the connection broke")
        await client.send(self._broker.info_topic, b"", qos, client.limits.retain)

    def _are_through(self) -> bool:
        through = self._audience.through()
        return through is None or through >= self._writer.through

    def _drop_what_is_stale(self) -> None:
        if not self._max_age_ms:
            return
        born_ns = time.monotonic_ns() - round(1e6 * self._max_age_ms)
        while len(self._queue) and self._queue.waiting[0].since_ns < born_ns:
            waiting = self._queue.pop()
            if waiting.acked_ns:
                continue
            why = f"as they waited for the broker for longer than max_age_ms={self._max_age_ms:g}"
            self._give_up(waiting, why)

    async def _publish(self, client: Client) -> None:
        """Publishes some of the queue at once. What was not acknowledged stays in there."""
        head = self._queue.waiting[0]
        # Whoever was subscribed when the connection broke may need a moment more than we did.
        waits = self._heard and time.monotonic() < self._back_s + RETURN_S
        waits = waits and self._qos == 1 and not len(self._audience)
        waits = waits and not self._closing
        # After a break one by one, so that no packet is blamed for another.
        alone = waits or head.tries > 0
        batch = list(
            islice(self._queue.waiting, 1 if alone else min(IN_FLIGHT, client.limits.in_flight))
        )
        for waiting in batch:
            waiting.tries += 1
        answers = await asyncio.gather(
            *(self._send(client, waiting) for waiting in batch), return_exceptions=True
        )
        if waits and answers[0] == NOBODY_SUBSCRIBED:
            head.tries = 0
            await asyncio.sleep(ASK_AGAIN_S)
            return
        for _ in batch:
            self._queue.pop()
        failed = [a if isinstance(a, BaseException) else None for a in answers]
        again = [w for w, failure in zip(batch, failed, strict=True) if failure is not None]
        self._queue.put_back(again)
        for waiting, answer in zip(batch, answers, strict=True):
            if not isinstance(answer, BaseException):
                self._answered(waiting, answer)
        for failure in failed:
            if failure is not None:
                raise failure

    async def _send(self, client: Client, waiting: Waiting) -> int:
        """At quality of service 0 a broker never says what it does not take, be it too long or not
        allowed. So each frame that is longer than all before it asks for an answer; others may
        overtake it then, on their way to a slow reader.
        """
        asks = len(waiting.packet) > self._longest
        qos = max(self._qos, min(1, client.limits.qos)) if asks else self._qos
        packet = waiting.next_packet(late=qos > self._qos)
        return await client.send(self._broker.data_topic, packet, qos)

    def _answered(self, waiting: Waiting, code: int) -> None:
        if code >= FAILURES:
            why = reason(code, PacketTypes.PUBACK)
            if not self._taken:
                raise TransportError(
                    f"the broker refuses to publish a frame of {len(waiting.packet)} bytes at "
                    f"{self._broker.data_topic}: {why}; may this user publish there, and messages "
                    "of that size?"
                )
            if not waiting.acked_ns:
                self._give_up(waiting, f"as the broker refused them: {why}")
            return
        again = waiting.acked_ns > 0
        if self._qos:
            self._queue.keep(waiting)
        self._taken += 1
        self._longest = max(self._longest, len(waiting.packet))
        self._heard = code != NOBODY_SUBSCRIBED
        if not self._heard and not again:
            self.unheard += 1
            self._tell()

    async def _watch(self, client: Client) -> None:
        """What readers say, and others who publish here. Raises MqttError when the connection
        breaks.
        """
        while True:
            message = await client.receive()
            assert message is not None
            self._audience.heard(message.topic.value, bytes(message.payload), self._writer)
            self._tell()
            self._changed.set()
