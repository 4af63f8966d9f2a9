"""Text from an MQTT 5 broker: `text+mqtt://host/topic`, `text+mqtts://...`, a message a segment."""

from __future__ import annotations

import anyio

from streamenc import options
from streamenc.io.network.mqtt.mqtt_client import Client
from streamenc.io.network.mqtt.mqtt_link import Broker, MqttError
from streamenc.io.network.text.messagesource import MessageSource
from streamenc.io.text.transcript import MAX_BYTES, Reading


class MqttTextSource(MessageSource):
    """Takes messages of text at a topic, in UTF-8 or as JSON. Options as in MqttSink; besides:

    address    text+mqtt://[user:password@]host[:1883]/topic or text+mqtts://...[:8883]/topic.
    qos        The most that is asked for; the publisher's own choice holds where it is less.
    queue      Messages that may wait here. With qos=1 the broker keeps what comes above; else the
               oldest are lost, and counted.
    session_s  qos=1: seconds for which the broker keeps what comes while this end is away.
    format, partials, max_bytes  As of TextSource.
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
        session_s: int | str = 600,
        format: str = "",
        partials: bool | str = False,
        max_bytes: int | str = MAX_BYTES,
        password_file: str = "",
    ) -> None:
        super().__init__(Reading.checked(format, partials, max_bytes), queue)
        self._qos = options.integer("qos", qos, 0, 1)
        self._session_s = options.integer("session_s", session_s, 0, 2**31) if self._qos else 0
        self._broker = Broker(
            address.removeprefix("text+"),
            client_id,
            keepalive,
            ca_file,
            cert_file,
            key_file,
            insecure,
            password_file,
        )
        self.address = f"text+{self._broker.name}"
        self._client: Client | None = None

    async def _connect(self) -> None:
        try:
            self._client = await self._broker.connect(
                self._greet, incoming=self._bound, session_s=self._session_s
            )
        except MqttError as error:
            raise self._broker.explained(error) from None

    async def _greet(self, client: Client) -> None:
        await self._broker.subscribe(client, self._broker.topic, self._qos)

    async def _pump(self) -> None:
        while self._client is not None:
            try:
                async for message in self._client.messages:
                    while self._qos and self._full():
                        await self._room.wait()
                    if message.payload:  # an empty one clears what the broker retained
                        self._take(bytes(message.payload))
                    self._client.acknowledge(message)
            except MqttError as error:
                self._broker.lost(error)
            await self._client.hang_up()
            self._client = await self._broker.reconnect(
                self._greet, incoming=self._bound, session_s=self._session_s
            )

    def _told(self) -> list[str]:
        return self._broker.remarks

    async def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with anyio.CancelScope(shield=True):
                await client.hang_up(for_good=True)
