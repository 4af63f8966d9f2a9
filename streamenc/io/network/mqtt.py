"""Token streams over an MQTT 5 broker: `mqtt://[user:password@]host[:port]/topic`, or `mqtts://`.

The broker keeps what the stream is (`topic/info`, retained), so one can join at any time; frames go
to `topic/data`. docs/io/wire.md describes both. A broker that goes away and comes back is connected
to again: what the outgoing queue cannot hold meanwhile is dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

import anyio

from streamenc import options
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Sink
from streamenc.io.network.mqtt_link import Broker, MqttError, hang_up
from streamenc.io.network.packets import PacketSource, PacketWriter, end_task

if TYPE_CHECKING:
    import aiomqtt

logger = logging.getLogger(__name__)

LINGER_S = 2.0
BLOCK_S = 2.0
IN_FLIGHT = 8
# Connections that may break over one packet: a broker hangs up on what it finds too large.
MAX_TRIES = 3


class MqttSink(Sink):
    """Publishes a stream to a broker.

    address    mqtt://[user:password@]host[:1883]/topic or mqtts://...[:8883]/topic.
    qos        0: while the broker is away, frames are dropped. 1: the broker acknowledges each
               frame, and while it is away up to `queue` of them wait; `write` waits 2 s for room
               in there, then drops.
    client_id  The broker gives one where this is "".
    keepalive  Seconds after which a silent connection is tested.
    ca_file    mqtts: certificates to trust; the system's where "".
    cert_file, key_file  mqtts: our own certificate and key.
    insecure   mqtts: trusts anybody.
    queue      Frames that may wait for the broker.

    `dropped` counts the frames that never reached the broker, as far as that is known.
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
    ) -> None:
        self._qos = options.integer("qos", qos, 0, 1)
        self._bound = options.integer("queue", queue, IN_FLIGHT, 1_000_000)
        self._broker = Broker(address, client_id, keepalive, ca_file, cert_file, key_file, insecure)
        self._queue: deque[bytes] = deque()
        self._tried: bytes | None = None
        self._tries = 0
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._connected = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None

    async def open(self, info: StreamInfo) -> None:
        self._writer = PacketWriter(info, self.clock)
        try:
            client = await self._broker.connect(self._greet, self._broker.info_topic)
        except MqttError as error:
            raise self._broker.explained(error) from None
        self._connected = True
        self._task = asyncio.create_task(self._run(client))
        self._task.add_done_callback(lambda _: self._room.set())

    async def write(self, frame: Frame) -> None:
        assert self._task is not None, "write before open"
        if self._task.done():
            self._task.result()
        packet = self._writer.packet(frame)
        if await self._has_room():
            self._queue.append(packet)
            self._writer.sent(frame)
            self._changed.set()
        else:
            self.dropped += 1
            self._writer.dropped(frame)

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
            self.dropped += len(self._queue)
            logger.warning("closed %s with %d frames unsent", self._broker.name, len(self._queue))

    async def _has_room(self) -> bool:
        if self._qos == 0:
            return self._connected and len(self._queue) < self._bound
        with anyio.move_on_after(BLOCK_S):
            while len(self._queue) >= self._bound and self._task and not self._task.done():
                self._room.clear()
                await self._room.wait()
        return len(self._queue) < self._bound

    async def _greet(self, client: aiomqtt.Client) -> None:
        await client.publish(self._broker.info_topic, self._writer.info, qos=1, retain=True)

    async def _run(self, client: aiomqtt.Client) -> None:
        while True:
            lost = asyncio.create_task(_watch(client))
            lost.add_done_callback(lambda _: self._changed.set())
            try:
                await self._drain(client, lost)
                return
            except MqttError as error:
                logger.warning("lost the broker of %s: %s", self._broker.name, error)
                self._drop_what_fails()
            finally:
                self._connected = False
                await end_task(lost)
                await hang_up(client)
            client = await self._broker.reconnect(self._greet, self._broker.info_topic)
            self._connected = True

    def _drop_what_fails(self) -> None:
        head = self._queue[0] if self._queue else None
        self._tries = self._tries + 1 if head is self._tried else 1
        self._tried = head
        if head is not None and self._tries >= MAX_TRIES:
            self._queue.popleft()
            self.dropped += 1
            logger.warning(
                "dropped a packet of %d bytes: %s went away %d times when it came",
                len(head),
                self._broker.name,
                self._tries,
            )

    async def _drain(self, client: aiomqtt.Client, lost: asyncio.Task[None]) -> None:
        while True:
            self._changed.clear()
            if lost.done():
                lost.result()
            if self._queue:
                await self._publish(client, lost)
                self._room.set()
            elif self._closing:
                await client.publish(self._broker.data_topic, self._writer.end(), self._qos)
                await client.publish(self._broker.info_topic, b"", qos=1, retain=True)
                return
            else:
                await self._changed.wait()

    async def _publish(self, client: aiomqtt.Client, lost: asyncio.Task[None]) -> None:
        """Publishes some of the queue at once. What was not acknowledged stays in there."""
        # After a break one by one, so that no packet is blamed for another.
        count = 1 if self._queue[0] is self._tried else IN_FLIGHT
        packets = list(islice(self._queue, count))
        calls = [
            asyncio.create_task(client.publish(self._broker.data_topic, packet, self._qos))
            for packet in packets
        ]
        try:
            # aiomqtt's calls do not notice that the connection is lost, but time out.
            while not lost.done() and not all(call.done() for call in calls):
                await asyncio.wait(
                    {lost, *(call for call in calls if not call.done())},
                    return_when=asyncio.FIRST_COMPLETED,
                )
        finally:
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
        failed = [call.cancelled() or call.exception() is not None for call in calls]
        for _ in packets:
            self._queue.popleft()
        unsent = [packet for packet, again in zip(packets, failed, strict=True) if again]
        self._queue.extendleft(reversed(unsent))
        for call in calls:
            if not call.cancelled():
                call.result()


async def _watch(client: aiomqtt.Client) -> None:
    """Raises MqttError when the connection breaks."""
    async for _ in client.messages:
        pass


class MqttSource(PacketSource):
    """Subscribes to a stream at a broker. Options as in MqttSink; besides:

    qos        The most that is asked for; the publisher's own choice holds where it is less.
    queue      Messages that may wait here; what comes above is lost, and counted by its gap.
    timeout_s  `open` waits so long for a stream.
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
    ) -> None:
        self._qos = options.integer("qos", qos, 0, 1)
        self._incoming = options.integer("queue", queue, 1, 1_000_000)
        self._broker = Broker(address, client_id, keepalive, ca_file, cert_file, key_file, insecure)
        self._client: aiomqtt.Client | None = None
        timeout_s = options.number("timeout_s", timeout_s, 0.1, 86_400.0)
        super().__init__(self._broker.name, timeout_s, bound=1)

    async def _connect(self) -> None:
        try:
            self._client = await self._broker.connect(self._greet, incoming=self._incoming)
        except MqttError as error:
            raise self._broker.explained(error) from None

    async def _greet(self, client: aiomqtt.Client) -> None:
        # The info first: the broker sends what it retained before any data.
        for topic in (self._broker.info_topic, self._broker.data_topic):
            await client.subscribe(topic, self._qos)

    async def _pump(self) -> None:
        while self._client is not None:
            try:
                async for message in self._client.messages:
                    await self._receive(message)
                    if self._reader.ended:
                        return
            except MqttError as error:
                logger.warning("lost the broker of %s: %s", self._broker.name, error)
            await self._disconnect()
            self._client = await self._broker.reconnect(self._greet, incoming=self._incoming)

    async def _receive(self, message: aiomqtt.Message) -> None:
        if not message.payload and message.topic.value == self._broker.info_topic:
            logger.info("nobody publishes at %s for the time being", self._broker.name)
            return
        while not self._has_room():
            await self._room.wait()
        self._take(bytes(message.payload))

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        await hang_up(client)
