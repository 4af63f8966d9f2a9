"""Audience: who reads a stream at a broker and how far they are, and who else publishes there."""

from __future__ import annotations

import time
from dataclasses import dataclass

from streamenc.errors import WireError
from streamenc.io.network.mqtt.mqtt_client import Client
from streamenc.io.network.mqtt.mqtt_link import Broker
from streamenc.io.network.packets import Complaints, PacketWriter
from streamenc.io.network.wire import Bye, Credit, Info, decode

# A reader that says nothing for so long is gone.
SILENT_S = 15.0
MAX_READERS = 64
# Brokers keep about 1000 messages for a reader, and drop what is more without a word. So we wait
# for readers that are further behind, but not for long: nobody may stop a live stream.
AHEAD, AHEAD_S = 512, 1.0
# Connections that may break over a subscription: some brokers hang up on what they do not allow.
MAX_DEAF = 2


@dataclass(slots=True)
class _Reader:
    through: int
    heard_s: float
    back: bool = True


class Audience:
    """Readers that say how far they are, by the names that they gave themselves; and others.

    reports      Whether readers are asked at all.
    overwritten  Somebody cleared what the broker retained of the stream.
    """

    def __init__(self, broker: Broker, reports: bool) -> None:
        self._broker = broker
        self._topics = [broker.info_topic, *([f"{broker.topic}/read/+"] if reports else ())]
        self._known: dict[str, _Reader] = {}
        self._rivals = Complaints()
        self.overwritten = False
        self._deaf = self._free = 0
        self._ahead_s = 0.0

    @property
    def sentences(self) -> list[str]:
        if not self._rivals.count:
            return []
        return [
            f"another publisher sends to {self._broker.name}; give each publisher a topic of its "
            "own"
        ]

    async def listen(self, client: Client) -> None:
        """Subscribes, where the broker lets us. Raises MqttError."""
        if self._deaf < MAX_DEAF:
            self._deaf += 1
            await client.listen(self._topics)
            self._deaf = 0

    @property
    def was_cut_off(self) -> bool:
        """The connection broke as we subscribed, and may do without that."""
        return 0 < self._deaf <= MAX_DEAF

    def heard(self, topic: str, packet: bytes, writer: PacketWriter) -> None:
        """What another client published. What makes no sense is no business of ours."""
        is_info = topic == self._broker.info_topic
        if is_info and not packet:
            self.overwritten = True
            return
        try:
            got = decode(packet)
        except WireError:
            return
        reader = topic.rpartition("/")[2]
        if is_info:
            if isinstance(got, Info) and got.stream != writer.stream:
                self._rivals.warn(
                    f"another publisher sends to {self._broker.name}; give each a topic of its own"
                )
        elif isinstance(got, Credit) and got.stream == writer.stream:
            if reader in self._known or len(self._known) < MAX_READERS:
                through = min(got.received, writer.through)
                self._known[reader] = _Reader(through, time.monotonic())
        elif isinstance(got, Bye):
            self._known.pop(reader, None)

    def is_behind(self, acked: int) -> bool:
        """Whether readers are to catch up before more is published; `acked` frames were."""
        through = self.through()
        if through is None or acked < max(through, self._free) + AHEAD:
            self._ahead_s = 0.0
            return False
        now_s = time.monotonic()
        self._ahead_s = self._ahead_s or now_s
        if now_s < self._ahead_s + AHEAD_S:
            return True
        self._free = acked
        return False

    def __len__(self) -> int:
        return len(self._known)

    def away(self) -> None:
        """The connection broke: they have to say it again."""
        for reader in self._known.values():
            reader.back = False

    def all_back(self) -> bool:
        return all(reader.back for reader in self._known.values())

    def drop_missing(self) -> None:
        self._known = {name: reader for name, reader in self._known.items() if reader.back}

    def through(self) -> int | None:
        """How far the last of them is; None where there are none."""
        since_s = time.monotonic() - SILENT_S
        for name in [n for n, r in self._known.items() if r.heard_s < since_s]:
            del self._known[name]
        return min((reader.through for reader in self._known.values()), default=None)
