"""The part below MqttSink and MqttSource: a connection to a broker, found again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
from collections.abc import Awaitable, Callable
from urllib.parse import unquote, urlsplit

import anyio

from streamenc import options
from streamenc.errors import TransportError, UsageError
from streamenc.io.network.wire import MAX_PACKET_BYTES

try:
    import aiomqtt
    from aiomqtt import MqttError
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties
except ImportError as error:
    raise UsageError("MQTT needs an extra: pip install streamenc[mqtt]") from error

__all__ = ["Broker", "MqttError", "hang_up"]

logger = logging.getLogger(__name__)
# aiomqtt warns about every single message that its full queue drops, and about each loss of the
# connection; we count the former by their gaps and report the latter ourselves.
_client_logger = logging.getLogger(__name__ + ".client")
_client_logger.setLevel(logging.CRITICAL)

PORTS = {"mqtt": 1883, "mqtts": 8883}
CONNECT_S = 5.0
BACKOFF_S = (0.1, 5.0)
# Room for topic and properties around the largest packet.
MAX_MESSAGE_BYTES = MAX_PACKET_BYTES + 2**17
# Refusals that no retry cures: of MQTT 5 above 128, from brokers that know no MQTT 5 below.
HOPELESS = {1, 2, 4, 5, 132, 133, 134, 135, 138, 140}

Greet = Callable[[aiomqtt.Client], Awaitable[None]]


class Broker:
    """Where the broker is, and how to get a connection.

    name  The address without user and password.
    """

    def __init__(
        self,
        address: str,
        client_id: str,
        keepalive: int | str,
        ca_file: str,
        cert_file: str,
        key_file: str,
        insecure: bool | str,
    ) -> None:
        url = urlsplit(address)
        try:
            self._host, port = url.hostname or "", url.port
        except ValueError as error:
            raise UsageError(f"address of an MQTT broker: {error}") from None
        topic = unquote(url.path.removeprefix("/"))
        if url.scheme not in PORTS or not self._host or not topic or set("+#\0") & set(topic):
            raise UsageError(
                f"got topic {topic!r} at host {self._host!r}; the address must be "
                f"{url.scheme}://[user:password@]host[:port]/topic, without +, # or zero bytes"
            )
        self._port = port or PORTS[url.scheme]
        self._user = unquote(url.username) if url.username is not None else None
        self._password = unquote(url.password) if url.password is not None else None
        # The same one for each connection, so that a new one ends the old one and its will is not
        # executed some time later.
        self._client_id = client_id or f"streamenc-{secrets.token_hex(8)}"
        self._keepalive_s = options.integer("keepalive", keepalive, 1, 65535)
        self.name = f"{url.scheme}://{self._host}:{self._port}/{topic}"
        self.info_topic, self.data_topic = f"{topic}/info", f"{topic}/data"
        insecure = options.flag("insecure", insecure)
        self._tls: ssl.SSLContext | None = None
        if url.scheme == "mqtts":
            self._tls = _tls_context(ca_file, cert_file, key_file, insecure)
        elif ca_file or cert_file or key_file or insecure:
            raise UsageError(
                "options 'ca_file', 'cert_file', 'key_file' and 'insecure' are for TLS: write mqtts://"
            )

    async def connect(
        self, greet: Greet, will_topic: str = "", incoming: int = 1
    ) -> aiomqtt.Client:
        """A connection on which `greet` has succeeded. Raises MqttError.

        The broker clears what it retains of `will_topic` when the connection breaks.
        """
        will = aiomqtt.Will(will_topic, b"", qos=1, retain=True) if will_topic else None
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = MAX_MESSAGE_BYTES
        client = aiomqtt.Client(
            self._host,
            self._port,
            username=self._user,
            password=self._password,
            identifier=self._client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            properties=properties,
            logger=_client_logger,
            will=will,
            keepalive=self._keepalive_s,
            timeout=CONNECT_S,
            tls_context=self._tls,
            max_queued_incoming_messages=incoming,
        )
        entering = asyncio.create_task(client.__aenter__())
        try:
            # A thread connects, and nothing can cancel that: let it come to its end, then hang up.
            await asyncio.shield(entering)
            await greet(client)
        except BaseException:  # also a cancellation: hang up first, then it goes on
            with anyio.CancelScope(shield=True):
                await asyncio.wait({entering})
                connected = not entering.cancelled() and entering.exception() is None
                if connected:
                    await hang_up(client)
                else:
                    # aiomqtt leaves its socket open where the broker took it but never answered.
                    client._client.disconnect()
            raise
        return client

    async def reconnect(
        self, greet: Greet, will_topic: str = "", incoming: int = 1
    ) -> aiomqtt.Client:
        """As `connect`, as often as it takes. Raises TransportError where no retry can help."""
        pause_s, longest_s = BACKOFF_S
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            try:
                client = await self.connect(greet, will_topic, incoming)
            except MqttError as error:
                if _is_hopeless(error):
                    raise self.explained(error) from None
                logger.debug("still no connection to %s: %s", self.name, error)
                pause_s = min(2 * pause_s, longest_s)
            else:
                logger.info("connected to %s again", self.name)
                return client

    def explained(self, error: MqttError) -> TransportError:
        if _is_hopeless(error):
            return TransportError(
                f"the broker of {self.name} refuses us: {error}; check user, password and "
                "client_id, and that the broker speaks MQTT 5"
            )
        return TransportError(
            f"cannot connect to the broker of {self.name}: {error}; is it running there"
            + (", and does its certificate fit 'ca_file'?" if self._tls else ", without TLS?")
        )


class _TlsSocket(ssl.SSLSocket):
    """With a time limit for the handshake, and closed if that fails: paho would leave it open."""

    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(CONNECT_S)
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _tls_context(ca_file: str, cert_file: str, key_file: str, insecure: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
        if cert_file:
            context.load_cert_chain(cert_file, key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            f"cannot use ca_file={ca_file!r}, cert_file={cert_file!r}, key_file={key_file!r}: "
            f"{error}"
        ) from None
    context.sslsocket_class = _TlsSocket
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _is_hopeless(error: MqttError) -> bool:
    code = getattr(error, "rc", None)
    refused = isinstance(error, aiomqtt.exceptions.MqttConnectError)
    return refused and getattr(code, "value", code) in HOPELESS


async def hang_up(client: aiomqtt.Client | None) -> None:
    if client is not None:
        with anyio.CancelScope(shield=True), contextlib.suppress(MqttError):
            await client.__aexit__(None, None, None)
