"""aiomqtt's client, which also keeps what the broker says: of itself, and of each message."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamenc.errors import UsageError
from streamenc.io.network.wire import MAX_PACKET_BYTES

try:
    import aiomqtt
    from aiomqtt import MqttError
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode
    from paho.mqtt.subscribeoptions import SubscribeOptions
except ImportError as error:
    raise UsageError("MQTT needs an extra: pip install 'streamenc[mqtt]'") from error

__all__ = ["Client", "Limits", "MqttError", "PacketTypes", "aiomqtt", "reason"]

# aiomqtt warns about each loss of the connection, which we report ourselves.
_logger = logging.getLogger(__name__)
_logger.setLevel(logging.CRITICAL)

# Room for topic and properties around the largest packet.
MAX_MESSAGE_BYTES = MAX_PACKET_BYTES + 2**17
# Reason codes of MQTT 5.
NOBODY_SUBSCRIBED = 16
FAILURES = 128
RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 154, 155


@dataclass(frozen=True, slots=True)
class Limits:
    """What a broker says in its CONNACK: what it takes.

    packet_bytes  The longest packet, header, topic and all.
    qos           The highest quality of service.
    retain        It keeps messages for those who come later.
    in_flight     So many messages may wait for its acknowledgement.
    session       It had kept our session, and what came meanwhile.
    """

    packet_bytes: int = 2**28
    qos: int = 2
    retain: bool = True
    in_flight: int = 65_535
    session: bool = False


class Client(aiomqtt.Client):
    """A connection that is made once. `limits` is known as soon as it is there.

    incoming   Messages that may wait here; with quality of service 1 the broker keeps the rest.
    session_s  The broker keeps the session for so long after the connection broke.
    """

    def __init__(self, *arguments: Any, incoming: int, session_s: int, **options: Any) -> None:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_MESSAGE_BYTES
        properties.ReceiveMaximum = min(incoming, 65_535)
        properties.SessionExpiryInterval = session_s
        super().__init__(
            *arguments,
            protocol=aiomqtt.ProtocolVersion.V5,
            properties=properties,
            logger=_logger,
            max_inflight_messages=65_535,  # whoever sends has a bound of its own
            **options,
        )
        self.limits = Limits()
        self._incoming, self._session_s = incoming, session_s
        self._replies: dict[int, asyncio.Future[int]] = {}
        # What waits here is not ours yet: the broker sends it again if the connection breaks.
        self._client.manual_ack_set(True)

    async def send(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> int:
        """Publishes; the broker's reason code, 0 where there is none. Raises MqttError.

        Of quality of service 0, until it is on its way. Calls that are made one after another are
        sent in that order.
        """
        sent = self._client.publish(topic, payload, qos, retain)
        if sent.rc:
            raise aiomqtt.MqttCodeError(sent.rc, "could not publish")
        if qos == 0 and sent.is_published():
            return 0
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._replies[sent.mid] = reply
        try:
            either: tuple[asyncio.Future[Any], ...] = (reply, self._disconnected)
            await asyncio.wait(either, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._replies.pop(sent.mid, None)
        if reply.done():
            return reply.result()
        if self._disconnected.done():
            raise MqttError("the connection broke") from self._disconnected.exception()
        raise MqttError("the broker did not answer in time")

    @property
    def broken(self) -> bool:
        """The connection is no more."""
        return self._disconnected.done()

    def when_broken(self, do: Callable[[], object]) -> None:
        """Calls `do` as soon as the connection breaks."""
        self._disconnected.add_done_callback(lambda _: do())

    async def listen(self, topics: list[str]) -> list[int]:
        """Subscribes to what others say there, with quality of service 0; the broker's reason
        codes. Raises MqttError.
        """
        options = SubscribeOptions(qos=0, noLocal=True)
        codes = await self.subscribe([(topic, options) for topic in topics])
        return [code if isinstance(code, int) else int(code.value) for code in codes]

    async def receive(self, within_s: float | None = None) -> aiomqtt.Message | None:
        """The next message, what came before the connection broke among them; None where there is
        none within `within_s`. Raises MqttError where there will be none.
        """
        if not self._queue.empty():
            return self._queue.get_nowait()
        getting = asyncio.ensure_future(self._queue.get())
        either: tuple[asyncio.Future[Any], ...] = (getting, self._disconnected)
        try:
            await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            getting.cancel()
            raise
        if getting.done():
            return getting.result()
        getting.cancel()
        if self.broken:
            raise MqttError("the connection broke") from self._disconnected.exception()
        return None

    def acknowledge(self, message: aiomqtt.Message) -> None:
        """The broker may forget a message, and send another one."""
        self._client.ack(message.mid, message.qos)

    async def hang_up(self, for_good: bool = False) -> None:
        """Ends the connection, and `for_good` the session too."""
        with contextlib.suppress(MqttError):
            if for_good and self._session_s and not self._disconnected.done():
                properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]
                properties.SessionExpiryInterval = 0
                self._client.disconnect(properties=properties)
                await asyncio.wait({self._disconnected}, timeout=self.timeout)
            await self.__aexit__(None, None, None)
        if self._disconnected.done():
            self._disconnected.exception()  # or asyncio complains that nobody looked

    def close_socket(self) -> None:
        """For a connection that was not taken: aiomqtt would leave its socket open."""
        self._client.disconnect()

    def _on_connect(
        self,
        client: Any,
        userdata: Any,
        flags: Any,
        reason_code: Any,
        properties: Properties | None = None,
    ) -> None:
        def said(name: str, default: int) -> int:
            return int(getattr(properties, name, default))  # absent unless the broker said it

        usual = Limits()
        self.limits = Limits(
            said("MaximumPacketSize", usual.packet_bytes),
            said("MaximumQoS", usual.qos),
            bool(said("RetainAvailable", usual.retain)),
            said("ReceiveMaximum", usual.in_flight),
            bool(flags.session_present),
        )
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_publish(
        self, client: Any, userdata: Any, mid: int, reason_code: Any, properties: Any
    ) -> None:
        reply = self._replies.get(mid)
        if reply is not None and not reply.done():
            reply.set_result(int(reason_code.value))
        super()._on_publish(client, userdata, mid, reason_code, properties)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        # Nothing bounds those of quality of service 0; a gap tells of it. Of the others, the broker
        # was told how many we take at once, and some send a few more.
        if message.qos or self._queue.qsize() < self._incoming:
            super()._on_message(client, userdata, message)


def reason(code: int, packet: int) -> str:
    """A broker's reason code in words. `packet` is one of paho's PacketTypes."""
    try:
        return f"{ReasonCode(packet, identifier=code)} ({code})"
    except (KeyError, ValueError):
        return f"reason code {code}"
