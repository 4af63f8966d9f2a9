"""EngineServer: an engine's door for other processes."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import zmq

from streamenc.engine.engine import Engine
from streamenc.engine.exchange.door import Answer
from streamenc.engine.remote.endpoint import Endpoint
from streamenc.engine.remote.guest import Guest
from streamenc.engine.remote.protocol import (
    BEAT_SECONDS,
    MAX_ENTRIES,
    Beat,
    Bye,
    Frames,
    FromEngine,
    Hello,
    Leaving,
    Limits,
    ModelFacts,
    Outgoing,
    Refused,
    Told,
    Turn,
    Welcome,
    head,
    read_client,
)
from streamenc.errors import UsageError, WireError
from streamenc.models.model import Model

logger = logging.getLogger(__name__)

MAX_CLIENTS = 1024
# Messages that are read before answers are sent.
MAX_READS = 64
# That a message grows by before it is looked at whether it is full.
MAX_ANSWERS = MAX_ENTRIES // 4
# Of a client that does not read, beside the answers that its credit allows.
SPARE_MESSAGES = 1024
# What a connection may be silent before it counts as broken: ZeroMQ's own thread answers, however
# long Python computes.
SILENT_MS = 4000


class Served(Protocol):
    """What a model is served from: a Codec."""

    @property
    def public_name(self) -> str: ...
    @property
    def has_encoder(self) -> bool: ...
    @property
    def has_decoder(self) -> bool: ...
    @property
    def encoder(self) -> Model: ...
    @property
    def decoder(self) -> Model: ...


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """What came in by the door, since it was opened.

    Attributes:
        clients: That are here now.
        greeted: In all.
        calls: Of their sessions.
        answered: Of these, what was answered, if with an error.
        lost: Of these, what never will be, as the client is gone.
        gone: Clients that died or broke off without a goodbye.
        dismissed: Clients that did not keep to the protocol, and what the last one did.
    """

    clients: int
    greeted: int
    calls: int
    answered: int
    lost: int
    gone: int
    dismissed: int
    last_offence: str


class EngineServer:
    """Serves an engine's sessions to other processes, by RemoteEngine there.

    One thread of its own receives and sends: calls of a client come as batches and go to the
    engine's worker, and the answers of a tick go back as one message to each client. A client that
    reads slowly, breaks off or talks nonsense harms nobody else: what it may have in flight is
    bounded, and it is dismissed with a reason.

    A context manager; leaving it closes the door at once, and the engine stays open.

    Args:
        engine: Whose sessions are served; it may have others beside.
        models: By the names that clients open them with: Codecs.
        address: ipc:///path, or tcp://127.0.0.1:port, 0 for any port. A socket's file is for its
            owner alone; by TCP, everybody on this machine may connect.

    Attributes:
        address: Where it is bound.

    Raises:
        UsageError: For another address, or no models.
        TransportError: Where another engine is, or a file that is no socket.
    """

    def __init__(
        self,
        engine: Engine,
        models: Mapping[str, Served],
        address: str,
        *,
        limits: Limits | None = None,
    ) -> None:
        if not models:
            raise UsageError("an engine's server wants models: {'nano': streamenc.load('nano')}")
        self._engine, self._limits = engine, limits or Limits()
        self._models: dict[tuple[str, bool], Model] = {}
        self._facts: list[ModelFacts] = []
        for name, codec in models.items():
            if codec.has_encoder:
                self._serve(name, False, codec.public_name, codec.encoder)
            if codec.has_decoder:
                self._serve(name, True, codec.public_name, codec.decoder)
        self._guests: dict[bytes, Guest] = {}
        self._answers: deque[tuple[Guest, list[Answer]]] = deque()
        self._counts: Counter[str] = Counter()
        self._last_offence = ""
        self._leaving = ""  # why no sessions are opened
        self._ends_at = float("inf")
        self._closing = "the engine's process closed its door"
        self._process = os.getpid()
        self._endpoint = Endpoint(address)
        self._woken = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        for option, value in {
            zmq.LINGER: 0,
            zmq.ROUTER_MANDATORY: 1,
            zmq.SNDHWM: self._limits.calls + SPARE_MESSAGES,
            zmq.RCVHWM: MAX_READS,
            zmq.MAXMSGSIZE: self._limits.message_bytes,
            zmq.HEARTBEAT_IVL: SILENT_MS // 4,
            zmq.HEARTBEAT_TIMEOUT: SILENT_MS,
            zmq.HEARTBEAT_TTL: SILENT_MS,
        }.items():
            self._socket.set(option, value)
        try:
            self.address = self._endpoint.bind(self._socket)
        except BaseException:  # Ctrl-C among them: let go, and passed on
            self._let_go()
            raise
        self._thread = threading.Thread(target=self._run, name="streamenc-door", daemon=True)
        self._thread.start()
        logger.info("serving %s at %s", ", ".join(models), self.address)

    def leave(self, seconds: float) -> None:
        """Ends in so many seconds, or as soon as no session is open; from any thread.

        Clients are told. Until then their sessions go on, so that they can be flushed, or taken
        elsewhere by snapshots; no new ones are opened.
        """
        self._ends_at = time.monotonic() + seconds
        self._leaving = "this engine is about to end and opens no sessions; open them on another"
        self._wake()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits until the door is closed; whether it is."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def close(self, why: str = "") -> None:
        """Tells all clients that the engine is gone, and closes the door; may be called twice."""
        if os.getpid() != self._process:
            return  # a fork, which the thread did not come along to
        self._closing = why or self._closing
        self._ends_at = 0
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def statistics(self) -> ServerStatistics:
        """What came in so far."""
        guests, counts = list(self._guests.values()), self._counts
        return ServerStatistics(
            clients=len(guests),
            greeted=counts["greeted"],
            calls=counts["calls"] + sum(guest.calls for guest in guests),
            answered=counts["answered"] + sum(guest.answered for guest in guests),
            lost=counts["calls"] - counts["answered"],
            gone=counts["gone"],
            dismissed=counts["dismissed"],
            last_offence=self._last_offence,
        )

    # ----- of the thread

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_out.fileno(), zmq.POLLIN)
        beat_at = time.monotonic()
        told_leaving = was_full = False
        try:
            while (now := time.monotonic()) < self._ends_at:
                if self._leaving and not told_leaving:
                    told_leaving = True
                    self._tell_all(Leaving(self._ends_at - now))
                if self._leaving and not any(guest.sessions for guest in self._guests.values()):
                    break
                free = self._free
                if now >= beat_at or (was_full and free):
                    beat_at = now + BEAT_SECONDS
                    self._beat(free)
                was_full = not free
                until = min(beat_at, self._ends_at)
                for found, _ in poller.poll(round(1000 * max(0, until - now))):
                    if found is self._socket:
                        self._read()
                    else:
                        # In this order: what is answered in between is seen below, and its
                        # byte is not read while it still counts as one that is to come.
                        self._wake_out.recv(64)
                        self._woken = False
                self._send_answers()
        finally:
            self._tell_all(Refused(self._closing))
            for ident in list(self._guests):
                self._remove(ident)
            self._let_go()

    def _read(self) -> None:
        for _ in range(MAX_READS):
            try:
                ident, *parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self._take(ident, [memoryview(part) for part in parts])

    def _take(self, ident: bytes, frames: list[memoryview]) -> None:
        guest = self._guests.get(ident)
        try:
            nbytes = sum(map(len, frames))
            if len(frames) > 1 + 3 * MAX_ENTRIES or nbytes > self._limits.message_bytes:
                raise WireError(f"got a message of {len(frames)} frames and {nbytes} bytes")
            message = read_client(frames)
            if isinstance(message, Turn) and guest is not None:
                guest.take(message, Frames(frames), self._leaving)
            elif isinstance(message, Hello) and guest is None:
                self._greet(ident, message)
            elif isinstance(message, Bye):
                self._remove(ident)
            else:
                raise WireError(
                    "this engine does not know you, as it was started anew or your connection "
                    "broke; connect again, and restore your sessions from snapshots"
                )
        except WireError as error:
            self._dismiss(ident, str(error))
        except Exception as error:  # whatever it is, it came of what this client sent
            logger.exception("a client's message failed")
            self._dismiss(ident, f"its message failed here: {type(error).__name__}: {error}")

    def _greet(self, ident: bytes, hello: Hello) -> None:
        if len(self._guests) >= MAX_CLIENTS:
            raise WireError(f"this engine has {MAX_CLIENTS} clients; close one")
        if self._leaving:
            raise WireError(self._leaving)
        guest = Guest(self._engine, self._find, self._limits, self._deliver, ident, hello.process)
        self._guests[ident] = guest
        self._counts["greeted"] += 1
        welcome = Welcome(
            self._process,
            self._facts,
            self._limits,
            self._engine.max_sessions,
            self._free,
            self._engine.statistics(),
        )
        self._send(ident, [head(welcome)])

    def _deliver(self, guest: Guest, answers: list[Answer]) -> None:
        """From any thread."""
        self._answers.append((guest, answers))
        self._wake()

    def _send_answers(self) -> None:
        told: dict[int, Guest] = {}
        while self._answers:
            guest, answers = self._answers.popleft()
            if self._guests.get(guest.ident) is guest:
                told[id(guest)] = guest
                for start in range(0, len(answers), MAX_ANSWERS):
                    guest.answers(answers[start : start + MAX_ANSWERS])
                    if guest.outgoing.full:
                        self._tell(guest)
        for guest in told.values():
            self._tell(guest)

    def _tell(self, guest: Guest) -> None:
        out, guest.outgoing = guest.outgoing, Outgoing(of_client=False)
        if out.count:
            self._send(guest.ident, out.frames(Told(guest.turns, self._free, out.table)))

    def _beat(self, free: int) -> None:
        """Tells all that the engine is there, and finds out who is not any more."""
        statistics = self._engine.statistics()
        for ident, guest in list(self._guests.items()):
            self._send(ident, [head(Beat(guest.turns, free, statistics))], optional=True)

    def _tell_all(self, message: FromEngine) -> None:
        frames = [head(message)]
        for ident in list(self._guests):
            self._send(ident, frames, optional=True)

    def _send(self, ident: bytes, frames: list[Any], *, optional: bool = False) -> None:
        """Sends without waiting; a client that is gone, or has no room for it, is removed.

        optional  What has no room is left out.
        """
        try:
            self._socket.send_multipart([ident, *frames], zmq.DONTWAIT)
        except zmq.Again:
            if not optional:
                self._dismiss(ident, "it did not read what it was answered")
        except zmq.ZMQError:  # no such client any more
            if ident in self._guests:
                self._counts["gone"] += 1
                logger.info("client %d is gone", self._guests[ident].process)
                self._remove(ident)

    def _dismiss(self, ident: bytes, why: str) -> None:
        guest = self._guests.get(ident)
        if guest is not None:
            self._counts["dismissed"] += 1
            self._last_offence = why
            logger.warning("dismissed client %d: %s", guest.process, why)
            self._remove(ident)
        self._send(ident, [head(Refused(why))], optional=True)

    def _remove(self, ident: bytes) -> None:
        guest = self._guests.pop(ident, None)
        if guest is not None:
            guest.go()
            self._counts["calls"] += guest.calls
            self._counts["answered"] += guest.answered

    @property
    def _free(self) -> int:
        return max(0, self._engine.max_sessions - self._engine.sessions)

    def _find(self, name: str, decode: bool) -> Model:
        model = self._models.get((name, decode))
        if model is None:
            what = "decoder" if decode else "encoder"
            there = ", ".join(sorted({name for name, way in self._models if way == decode}))
            raise UsageError(
                f"this engine serves no {what} {name[:200]!r}; it serves {there or 'none'}"
            )
        return model

    def _serve(self, name: str, decode: bool, public_name: str, model: Model) -> None:
        self._models[name, decode] = model
        facts = ModelFacts(name, decode, public_name, model.fingerprint(), model.spec)
        self._facts.append(facts)

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            try:
                self._wake_in.send(b"\0")
            except OSError:  # it has been woken often enough, or is closed
                pass

    def _let_go(self) -> None:
        # What was said last is sent yet.
        self._socket.close(linger=500)
        self._context.term()
        self._endpoint.release()
        self._wake_in.close()
        self._wake_out.close()
