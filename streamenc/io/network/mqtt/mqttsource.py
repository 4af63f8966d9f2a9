"""MqttSource: a token stream from an MQTT 5 broker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING

import anyio

from streamenc import options
from streamenc.io.network.mqtt.mqtt_client import FAILURES, Client, PacketTypes, reason
from streamenc.io.network.mqtt.mqtt_link import Broker, MqttError
from streamenc.io.network.packetsource import PacketSource, end_task
from streamenc.io.network.wire import Bye, Credit, encode_bye, encode_credit

if TYPE_CHECKING:
    import aiomqtt

logger = logging.getLogger(__name__)

# How far we are is said so often where it changed, and so often in any case.
REPORT_S, REPORT_FRAMES, ALIVE_S = 1.0, 64, 5.0
# Connections that may break over the first report: some brokers hang up on what they do not allow.
MAX_REPORTS = 2


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

    With qos=1 it says at `topic/read/...` how far it is: the publisher keeps what it has not got.
    """

    live = True
    shared = True

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
        password_file: str = "",
    ) -> None:
        self._qos = options.integer("qos", qos, 0, 1)
        self._incoming = options.integer("queue", queue, 1, 1_000_000)
        self._session_s = options.integer("session_s", session_s, 0, 2**31) if self._qos else 0
        self._forgotten = 0
        self._broker = Broker(
            address, client_id, keepalive, ca_file, cert_file, key_file, insecure, password_file
        )
        self._client: Client | None = None
        self._report_topic = f"{self._broker.topic}/read/{secrets.token_hex(8)}"
        self._reports, self._reported = self._qos > 0, False
        self._untold = self._unsaid = 0
        self._asked = asyncio.Event()
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
            client = self._client
            client.when_broken(self._room.set)
            reporting = asyncio.create_task(self._report(client))
            try:
                while not self._reader.ended:
                    message = await client.receive(self._reader.ends_in_s)
                    if message is not None:
                        await self._receive(client, message)
                    else:
                        self._settle()
                return
            except MqttError as error:
                self._broker.lost(error)
                self.remarks = self._sentences()
            finally:
                await end_task(reporting)
            await client.hang_up()
            self._client = await self._broker.reconnect(
                self._greet, incoming=self._incoming, session_s=self._session_s
            )
            self._forgotten += self._session_s > 0 and not self._client.limits.session

    async def _receive(self, client: Client, message: aiomqtt.Message) -> None:
        is_info = message.topic.value == self._broker.info_topic
        if not message.payload and is_info:
            logger.info("nobody publishes at %s for the time being", self._broker.name)
            self._gone("the publisher went away without an end")
        else:
            while not self._has_room():
                if client.broken:
                    # What there is no room for comes again, as it was not acknowledged.
                    if len(self._frames) >= self._incoming:
                        return
                    break
                await self._room.wait()
            self._take(bytes(message.payload))
            self._unsaid += 1
            if is_info or self._reader.ends_in_s is not None or self._unsaid >= REPORT_FRAMES:
                self._asked.set()
        client.acknowledge(message)

    async def _report(self, client: Client) -> None:
        """Says how far we are: when the publisher is back, at its end, and now and then."""
        said = (0, 0)
        beat_s = 0.0
        while self._reports:
            self._asked.clear()
            self._unsaid = 0
            now = self._reader.stream, self._reader.through
            if now[0] and (now != said or anyio.current_time() >= beat_s):
                said, beat_s = now, anyio.current_time() + ALIVE_S
                try:
                    await self._say(client, encode_credit(Credit(*now, self._incoming)))
                except MqttError:
                    return  # whoever reads from it finds the same
            with anyio.move_on_after(REPORT_S):
                await self._asked.wait()
                said = (0, 0)

    async def _say(self, client: Client, packet: bytes) -> None:
        if self._untold >= MAX_REPORTS:
            self._reports = False
            return
        # The first one asks whether we may.
        self._untold += not self._reported
        qos = 0 if self._reported else min(1, client.limits.qos)
        code = await client.send(self._report_topic, packet, qos)
        self._untold = 0
        self._reported = True
        if code >= FAILURES:
            self._reports = self._reported = False
            logger.info(
                "cannot say at %s how far we are: %s",
                self._report_topic,
                reason(code, PacketTypes.PUBACK),
            )

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
                if self._reported and not client.broken:
                    with contextlib.suppress(MqttError):
                        await self._say(client, encode_bye(Bye(self._reader.stream)))
                await client.hang_up(for_good=True)
