"""Ledger: whenever connections break or servers die, nothing is missing, nothing comes twice."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamenc.errors import TransportError, WireError
from streamenc.io.network.websocket.ledger import Ledger, Piece, Refusal, Snapshot
from streamenc.io.network.websocket.livemessages import (
    Ack,
    Close,
    Dropped,
    Error,
    Flush,
    Flushed,
    Mark,
    Marked,
    Open,
    Resume,
    Resumed,
    Set,
    TakeSnapshot,
    WasSet,
    encode_message,
    read_from_client,
)
from streamenc.io.network.wire import Credit, decode, encode_credit, encode_samples
from tests.support.profile import examples
from tests.support.streamserver import INFO, StandIn, codes_of


class World:
    """A ledger and a server, and between them two wires that can be cut at any message."""

    def __init__(self, random: Random, window: int, server_window: int) -> None:
        self.random = random
        self.ledger = Ledger(Open("stand-in", window=window), 2**20)
        self.server = StandIn(server_window)
        self.saved = self.server.snapshot()
        self.up: list[bytes | str] = []
        self.down: list[bytes | str] = []
        self.sent = 0
        self.linked = self.greeted = False
        self.came: list[Any] = []
        self.unread = self.cuts = self.deaths = 0

    def link(self) -> None:
        self.up, self.down = self.ledger.greeting(), []
        self.linked, self.greeted = True, False

    def cut(self) -> None:
        self.cuts += 1
        self.linked = self.greeted = False
        self.ledger.lost()

    def die(self) -> None:
        self.deaths += 1
        self.server = self.saved.snapshot()
        self.cut()

    def save(self) -> None:
        self.saved = self.server.snapshot()
        if self.greeted:
            self.down.append(encode_message(self.server.ack()))

    def serve_one(self) -> None:
        """The server takes one message, or sends one."""
        if self.greeted and (not self.up or self.random.random() < 0.4):
            self.server_sends()
        elif self.up:
            message = self.up.pop(0)
            first = read_from_client(message) if isinstance(message, str) else None
            self.greeted = True
            if isinstance(first, Open):
                self.server.bound = first.window
                self.down += [encode_message(self.server.opened()), INFO]
                self.sent = 0
            elif isinstance(first, Resume):
                self.sent = first.received
                self.down += [encode_message(self.server.resumed(first, "memory")), INFO]
            else:
                if (error := self.server.receive(message)) is not None:
                    self.down.append(encode_message(error))
                self.down.append(self.server.credit())

    def server_sends(self) -> None:
        if (out := self.server.numbered(self.sent)) is not None:
            self.down += out
            self.sent += 1

    def client_one(self) -> None:
        if self.down and self.random.random() < 0.6:
            if (came := self.ledger.take(self.down.pop(0))) is not None:
                self.came.append(came)
                self.unread += isinstance(came, Piece)
        elif (message := self.ledger.sendable()) is not None:
            self.up.append(message)
        if self.unread and self.random.random() < 0.5:
            self.unread -= 1
            self.ledger.read()

    def step(self) -> None:
        if not self.linked:
            self.link()
        self.random.choice((self.serve_one, self.client_one))()

    def codes(self) -> np.ndarray[Any, Any]:
        pieces = [came.data.data for came in self.came if isinstance(came, Piece)]
        assert [came.data.seq for came in self.came if isinstance(came, Piece)] == list(
            range(len(pieces))
        )
        return np.concatenate(pieces, axis=1)

    def all_of(self, *kinds: type[Any]) -> list[Any]:
        return [came for came in self.came if isinstance(came, kinds)]


@settings(max_examples=examples(1000, fast=60), deadline=None)
@given(
    seed=st.integers(0, 2**32),
    window=st.sampled_from((1, 3, 8, 100)),
    server_window=st.sampled_from((1, 2, 16)),
    refuse=st.booleans(),
)
def test_nothing_is_missing_and_nothing_comes_twice(
    seed: int, window: int, server_window: int, refuse: bool
) -> None:
    random = Random(seed)
    world = World(random, window, server_window)
    samples = np.arange(1, 181, dtype=np.int16)
    at = marks = flushes = 0
    refused = set()
    risk = random.choice((0.0, 0.02, 0.1))
    ledger = world.ledger
    while ledger.closed is None:
        if ledger.next_seq < 60 and at < len(samples) and random.random() < 0.3:
            match random.randrange(8):
                case 0:
                    ledger.put_message(Mark(f"mark {marks}"))
                    marks += 1
                case 1:
                    ledger.put_message(Flush())
                    flushes += 1
                case 2 if refuse and not refused:
                    refused = {ledger.next_seq}
                    world.server.refuses |= refused
                    world.saved.refuses |= refused
                    ledger.put_message(Mark("never"))
                case _:
                    n = random.randint(1, 7)
                    cut = samples[None, at : at + n]
                    ledger.put(lambda seq, cut=cut, pts=at: encode_samples(cut, seq, pts))
                    at += cut.shape[1]
        elif at >= len(samples) or ledger.next_seq >= 60:
            if not world.all_of(Close):
                world.came.append(Close())
                ledger.put_message(Close())
        if random.random() < 0.05:
            world.save()
        if world.cuts < 40 and random.random() < risk:
            random.choice((world.cut, world.die))()
        world.step()
    assert np.array_equal(world.codes(), codes_of(samples[:at]))
    assert [mark.id for mark in world.all_of(Marked)] == [f"mark {i}" for i in range(marks)]
    assert len(world.all_of(Flushed)) == flushes
    assert ledger.missing == 0
    assert not any(piece.gap for piece in world.all_of(Piece))
    assert {refusal.seq for refusal in world.all_of(Refusal)} == refused
    assert not world.all_of(Error)


def linked(window: int = 4, keep_bytes: int = 1000) -> World:
    world = World(Random(0), window, 4)
    world.ledger = Ledger(Open("stand-in", window=window), keep_bytes)
    world.link()
    while world.ledger.opened is None or world.down:
        world.step()
    return world


def put(ledger: Ledger, n: int = 4) -> int:
    return ledger.put(lambda seq: encode_samples(np.zeros((1, n), np.int16), seq, n * seq))


def sent(ledger: Ledger) -> list[bytes | str]:
    return list(iter(ledger.sendable, None))


def test_nothing_is_sent_before_the_server_answered():
    ledger = Ledger(Open("stand-in", window=1), 1000)
    put(ledger)
    assert len(ledger.greeting()) == 1
    assert ledger.sendable() is None


def test_no_more_is_sent_than_the_server_takes():
    ledger = linked().ledger
    for _ in range(10):
        put(ledger)
    assert len(sent(ledger)) == 4
    ledger.take(encode_credit(Credit(0, 2, 4)))
    assert len(sent(ledger)) == 2
    ledger.take(encode_credit(Credit(0, 1, 4)))  # an old one takes nothing back
    ledger.take(encode_credit(Credit(0, 10, 4)))
    assert len(sent(ledger)) == 4


def test_what_is_acknowledged_is_not_kept():
    ledger = linked(keep_bytes=100).ledger
    while ledger.has_room:
        put(ledger)
    kept = ledger.kept
    sent(ledger)
    ledger.take(encode_message(Ack(kept, 0)))
    assert ledger.has_room and ledger.kept == ledger.kept_bytes == 0
    assert ledger.acked == kept


def test_an_acknowledgement_of_what_was_not_sent():
    ledger = linked().ledger
    put(ledger)
    with pytest.raises(WireError, match="which was not sent"):
        ledger.take(encode_message(Ack(1, 0)))


@pytest.mark.parametrize("wanted", [0, 5])
def test_a_server_that_wants_what_is_not_kept(wanted: int):
    ledger = linked().ledger
    put(ledger)
    put(ledger)
    sent(ledger)
    ledger.take(encode_message(Ack(1, 0)))
    ledger.lost()
    ledger.greeting()
    with pytest.raises(TransportError, match="kept are 1 to 2"):
        ledger.take(encode_message(Resumed("s", "t", wanted, 0, 0, True, "store", 4)))


def test_what_the_server_has_no_more_is_counted_and_flagged():
    world = linked()
    for _ in range(3):
        put(world.ledger)
    world.ledger.lost()
    world.ledger.greeting()
    world.ledger.take(encode_message(Resumed("s", "t2", 0, 0, 2, False, "store", 4, "lost")))
    assert (world.ledger.missing, world.ledger.received, world.ledger.token) == (2, 2, "t2")
    for message in sent(world.ledger):
        world.server.receive(message)
    for n in range(3):
        came = world.ledger.take(world.server.output[n][0])
        assert isinstance(came, Piece)
        assert came.gap == (n == 0)


def test_what_came_before_is_left_out():
    world = linked(window=8)
    ledger = world.ledger
    for _ in range(3):
        put(ledger)
    ledger.put_message(Mark("a"))
    for message in sent(ledger):
        world.server.receive(message)
    for n in range(2):
        ledger.take(world.server.output[n][0])
    ledger.lost()
    ledger.greeting()
    ledger.take(encode_message(Resumed("s", "t1", 4, 0, 0, True, "store", 8)))
    came = [ledger.take(out[0]) for out in world.server.output]
    assert came[:2] == [None, None]
    assert isinstance(came[2], Piece) and not came[2].gap
    assert isinstance(came[3], Marked)
    ledger.lost()
    ledger.greeting()
    ledger.take(encode_message(Resumed("s", "t1", 4, 0, 2, True, "store", 8)))
    assert [ledger.take(out[0]) for out in world.server.output[2:]] == [None, None]
    assert (ledger.received, ledger.unread, ledger.missing) == (4, 3, 0)


def test_a_snapshot_is_a_packet_and_a_message():
    world = linked()
    ledger = world.ledger
    ledger.put_message(TakeSnapshot())
    for message in sent(ledger):
        world.server.receive(message)
    packet, word = world.server.output[0]
    assert ledger.take(packet) is None
    assert ledger.take(word) == Snapshot(b"abc", 1, 0)


def test_a_disconnection_may_swallow_a_snapshot():
    world = linked()
    ledger = world.ledger
    ledger.put_message(TakeSnapshot())
    for message in sent(ledger):
        world.server.receive(message)
    packet, word = world.server.output[0]
    ledger.take(packet)
    ledger.lost()
    ledger.greeting()
    ledger.take(encode_message(Resumed("s", "t1", 1, 0, 0, True, "memory", 4)))
    assert ledger.take(word) == Snapshot(b"", 1, 0)


def test_what_was_dropped_is_not_missing():
    ledger = linked().ledger
    assert ledger.take(encode_message(Dropped("output", 5, 5, 4))) == Dropped("output", 5, 5, 4)
    assert (ledger.received, ledger.missing) == (5, 0)


def test_what_the_server_took_may_be_forgotten():
    ledger = linked(keep_bytes=100).ledger
    for _ in range(3):
        put(ledger)
    assert len(sent(ledger)) == 3
    assert not ledger.forget()
    ledger.take(encode_credit(Credit(0, 2, 4)))
    assert ledger.forget() and (ledger.acked, ledger.kept) == (2, 1)
    ledger.take(encode_message(Ack(1, 0)))  # comes too late
    assert (ledger.acked, ledger.kept) == (2, 1)
    ledger.take(encode_message(Ack(3, 0)))
    assert (ledger.acked, ledger.kept_bytes) == (3, 0)


def test_credits_follow_what_was_read():
    world = linked(window=8)
    for _ in range(4):
        put(world.ledger)
    for message in sent(world.ledger):
        world.server.receive(message)
    for out in world.server.output:
        world.ledger.take(out[0])
    assert sent(world.ledger) == []  # four came, and nobody read one
    world.ledger.read()
    assert sent(world.ledger) == []
    world.ledger.read()
    assert [decode(packet) for packet in sent(world.ledger)] == [Credit(0, 2, 8)]


def test_a_server_that_sends_more_than_it_may():
    world = linked(window=2)
    for n in range(5):
        world.server.receive(encode_samples(np.zeros((1, 4), np.int16), n, 4 * n))
    with pytest.raises(TransportError, match="more than it was asked for"):
        for out in world.server.output:
            world.ledger.take(out[0])


def test_messages_are_numbered_as_the_packets_are():
    ledger = linked().ledger
    put(ledger)
    assert ledger.put_message(Set(codebooks=1)) == 1
    _, message = sent(ledger)
    assert msgspec.json.decode(message) == {"type": "set", "codebooks": 1, "seq": 1}
    assert ledger.take(encode_message(WasSet(1, 0))) == WasSet(1, 0)
