"""The part below MqttSink and MqttSource: a connection to a broker, found again when it breaks."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio

from streamenc import options
from streamenc.errors import TransportError, UsageError
from streamenc.io.network.mqtt.mqtt_client import (
    FAILURES,
    QOS_NOT_SUPPORTED,
    RETAIN_NOT_SUPPORTED,
    Client,
    Limits,
    MqttError,
    PacketTypes,
    aiomqtt,
    reason,
)
from streamenc.io.network.packets import Complaints

__all__ = ["Broker", "MqttError"]

logger = logging.getLogger(__name__)

PORTS = {"mqtt": 1883, "mqtts": 8883}
CONNECT_S = 5.0
BACKOFF_S = (0.1, 2.0)
MAX_TOPIC_BYTES = 65_000
# Of a user whom the address names without a password.
PASSWORD_VARIABLE = "STREAMENC_MQTT_PASSWORD"
MAX_PASSWORD_CHARACTERS = 4096
# So many connections in a row that live no longer, while the broker is there, are somebody's doing.
MAX_SHORT, SHORT_S = 8, 5.0
# Refusals that no retry cures: of MQTT 5 above 128, from brokers that know no MQTT 5 below.
HOPELESS = {1, 2, 4, 5, 132, 133, 134, 135, 138, 140, RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED}
UNSPECIFIED, TAKEN_OVER = 128, 142

Greet = Callable[[Client], Awaitable[None]]


class Broker:
    """Where the broker is, and how to get a connection.

    name    The address without user and password.
    limits  What it took when it was connected to last.
    at_once  It was there as soon as the connection before had broken.
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
        password_file: str = "",
    ) -> None:
        try:
            url = urlsplit(address)
            self._host, port = url.hostname or "", url.port
        except ValueError:  # which may quote the password
            raise UsageError(
                "the host or port of an MQTT broker makes no sense; the address must be "
                "mqtt://[user:password@]host[:port]/topic, an IPv6 host in brackets, and of a user "
                "or password / : @ # ? written as %2F %3A %40 %23 %3F"
            ) from None
        topic = unquote(url.path.removeprefix("/"))
        if url.scheme not in PORTS or not self._host or not topic or set("+#\0") & set(topic):
            raise UsageError(
                f"the address must be {url.scheme}://[user:password@]host[:port]/topic, without +, "
                f"# or zero bytes; got {len(topic)} characters of topic at host {self._host!r}"
            )
        if topic.startswith("$") or len(topic.encode()) > MAX_TOPIC_BYTES:
            raise UsageError(
                f"got topic {topic[:80]!r}; topics that begin with $ are the broker's own "
                f"($SYS/) or shared between subscribers ($share/), and one has at most "
                f"{MAX_TOPIC_BYTES} bytes; take another topic"
            )
        self._port = port or PORTS[url.scheme]
        self._user = unquote(url.username) if url.username is not None else None
        self._password = _password(self._user, url.password, password_file)
        # The same one for each connection, so that a new one ends the old one, whose will is then
        # not executed some time later, and finds what the broker kept.
        self._client_id = client_id or f"streamenc-{secrets.token_hex(8)}"
        self._twin = f"; has another program the client_id {client_id!r}?" if client_id else ""
        self._keepalive_s = options.integer("keepalive", keepalive, 1, 65535)
        self.name = f"{url.scheme}://{self._host}:{self._port}/{topic}"
        self.topic, self.info_topic, self.data_topic = topic, f"{topic}/info", f"{topic}/data"
        self.limits = Limits()
        self._losses = Complaints()
        self._short, self._born_s, self.at_once = 0, 0.0, False
        insecure = options.flag("insecure", insecure)
        self._tls: ssl.SSLContext | None = None
        if url.scheme == "mqtts":
            self._tls = _tls_context(ca_file, cert_file, key_file, insecure)
        elif ca_file or cert_file or key_file or insecure:
            raise UsageError(
                "options 'ca_file', 'cert_file', 'key_file' and 'insecure' are for TLS: write mqtts://"
            )
        self._will_qos, self._will_retain = 1, True

    @property
    def remarks(self) -> list[str]:
        times = self._losses.count
        again = f"{self.name} was lost {times} times, and looked for again{self._twin}"
        return [again] if times else []

    async def connect(
        self,
        greet: Greet,
        *,
        will: bool = False,
        incoming: int = 1,
        session_s: int = 0,
    ) -> Client:
        """A connection on which `greet` has succeeded. Raises MqttError, TransportError.

        will       The broker clears what it retains of the info when the connection breaks.
        incoming   Messages that may wait here.
        session_s  For so long the broker keeps what comes while we are away.
        """
        while True:
            try:
                return await self._connect(greet, will, incoming, session_s)
            except aiomqtt.exceptions.MqttConnectError as error:
                # It takes no such will: a simpler one may do.
                if _code(error) == RETAIN_NOT_SUPPORTED and will and self._will_retain:
                    self._will_retain = False
                elif _code(error) == QOS_NOT_SUPPORTED and will and self._will_qos:
                    self._will_qos = 0
                else:
                    raise

    async def _connect(self, greet: Greet, will: bool, incoming: int, session_s: int) -> Client:
        last = aiomqtt.Will(self.info_topic, b"", qos=self._will_qos, retain=self._will_retain)
        client = Client(
            self._host,
            self._port,
            username=self._user,
            password=self._password,
            identifier=self._client_id,
            will=last if will else None,
            keepalive=self._keepalive_s,
            timeout=CONNECT_S,
            tls_context=self._tls,
            # Also at first: mosquitto 2.0 writes no session down that began with a clean start.
            clean_start=not session_s,
            incoming=incoming,
            session_s=session_s,
        )
        entering = asyncio.create_task(client.__aenter__())
        try:
            # A thread connects, and nothing can cancel that: let it come to its end, then hang up.
            await asyncio.shield(entering)
            self.limits = client.limits
            await greet(client)
            self._born_s = time.monotonic()
        except BaseException:  # also a cancellation: hang up first, then it goes on
            with anyio.CancelScope(shield=True):
                await asyncio.wait({entering})
                connected = not entering.cancelled() and entering.exception() is None
                if connected:
                    await client.hang_up()
                else:
                    client.close_socket()
            raise
        return client

    async def reconnect(
        self, greet: Greet, *, will: bool = False, incoming: int = 1, session_s: int = 0
    ) -> Client:
        """As `connect`, as often as it takes. Raises TransportError where no retry can help."""
        pause_s, longest_s = BACKOFF_S
        self.at_once = True
        while True:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
            try:
                client = await self.connect(
                    greet, will=will, incoming=incoming, session_s=session_s
                )
            except MqttError as error:
                if _is_hopeless(error):
                    raise self.explained(error) from None
                self.at_once = False
                logger.debug("still no connection to %s: %s", self.name, error)
                pause_s = min(2 * pause_s, longest_s)
            else:
                logger.info("connected to %s again", self.name)
                return client

    async def subscribe(self, client: Client, topic: str, qos: int) -> None:
        """Raises MqttError, and TransportError where the broker does not let us."""
        (granted,) = await client.subscribe(topic, qos)
        code = granted if isinstance(granted, int) else int(granted.value)
        if code >= FAILURES:
            raise TransportError(
                f"the broker of {self.name} lets us not subscribe to {topic}: "
                f"{reason(code, PacketTypes.SUBACK)}; may this user read there?"
            )

    def lost(self, error: MqttError) -> None:
        """Logs the loss of a connection. Raises TransportError where the next is lost, too."""
        if _code(error.__cause__) == TAKEN_OVER:
            raise TransportError(
                f"another program connected to the broker of {self.name} with our client_id "
                f"{self._client_id!r} and took our place; give each its own 'client_id', or none"
            )
        soon = self.at_once and time.monotonic() - self._born_s < SHORT_S
        self._short = self._short + 1 if soon else 0
        if self._twin and self._short >= MAX_SHORT:
            raise TransportError(
                f"the broker of {self.name} ended {MAX_SHORT} connections in a row, each within "
                f"{SHORT_S:g} s: another program seems to have our client_id {self._client_id!r}; "
                "give each its own, or none"
            )
        why = error.__cause__ if _code(error.__cause__) > UNSPECIFIED else "the connection broke"
        self._losses.warn(f"lost the broker of {self.name}: {why}{self._twin}")

    def explained(self, error: MqttError) -> TransportError:
        if _code(error) in (1, 132):
            cure = "it has to speak MQTT 5"
        elif _code(error) in (2, 133):
            cure = "check client_id"
        else:
            cure = "check user, password and client_id, and that the broker speaks MQTT 5"
        if isinstance(error, aiomqtt.exceptions.MqttConnectError):
            return TransportError(f"the broker of {self.name} refuses us: {error}; {cure}")
        if self._tls:
            cure = "is it running there, and does its certificate fit 'ca_file'?"
        elif "Errno" in str(error):  # nobody took the connection
            cure = "is it running there?"
        else:
            cure = "is it running there, without TLS?"
        return TransportError(f"cannot connect to the broker of {self.name}: {error}; {cure}")


def _password(user: str | None, in_address: str | None, file: str) -> str | None:
    """The password of the address, of the file, or of the environment. Raises UsageError."""
    if file and (in_address is not None or user is None):
        raise UsageError(
            "option 'password_file' takes the place of a password in the address, which has to "
            "name the user: mqtt://user@host/topic?password_file=FILE"
        )
    if in_address is not None or user is None:
        return None if in_address is None else unquote(in_address)
    if not file:
        return os.environ.get(PASSWORD_VARIABLE)
    try:
        with Path(file).open(encoding="utf-8") as lines:
            password = lines.readline(MAX_PASSWORD_CHARACTERS + 1).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read password_file={file!r}: {error}") from None
    if not 0 < len(password) <= MAX_PASSWORD_CHARACTERS:
        raise UsageError(
            f"password_file={file!r} has no password in its first line, or one of more than "
            f"{MAX_PASSWORD_CHARACTERS} characters"
        )
    return password


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
        logger.warning("any certificate of the broker is taken (insecure)")
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _code(error: BaseException | None) -> int:
    """The reason code of a broker's refusal; 0 where there is none."""
    code = getattr(error, "rc", None)
    value = getattr(code, "value", code)
    return value if isinstance(value, int) else 0


def _is_hopeless(error: MqttError) -> bool:
    return isinstance(error, aiomqtt.exceptions.MqttConnectError) and _code(error) in HOPELESS
