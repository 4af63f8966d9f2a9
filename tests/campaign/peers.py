"""Hostile ZeroMQ peers: what they cost whoever publishes or subscribes, and a good neighbour.

Each of `CASES` runs in three processes: the one that is attacked, which also measures how late its
event loop is and how its memory grows; the attacker; and, where it publishes, a good subscriber.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import anyio
import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.wire import Credit, encode_credit, encode_frame, encode_info
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from tests.support.rawzmtp import MORE, RawPeer, zmtp_frame

CODES = StreamInfo("codes", Fraction(1, 24000), Fraction(25, 2), (8, None), "uint16", "demo", 2048)
PER_SECOND = 200
TICK_S = 0.01

Attack = Callable[[int, float, Random], None]


def _frame(seq: int, columns: int = 1) -> Frame:
    return Frame(np.full((8, columns), seq % 2048, np.uint16), seq * 1920, 1920, seq=seq)


# What the attackers do: each is given a port, when to stop, and what may vary.


def _again(peers: Callable[[], RawPeer]) -> Iterator[RawPeer]:
    """Peers, one after the other: who is thrown out comes again."""
    while True:
        try:
            yield peers()
        except OSError:
            time.sleep(0.01)


def _pouring(kind: str, data: bytes, per_second: float = 0.0, head: bytes = b"") -> Attack:
    """Sends `data` again and again, unpaced where `per_second` (of bytes) is 0."""

    def attack(port: int, until: float, rng: Random) -> None:
        for peer in _again(lambda: RawPeer(port, kind)):
            with suppress(OSError):
                peer.socket.sendall(head)
                while time.monotonic() < until:
                    peer.socket.sendall(data)
                    if per_second:
                        time.sleep(len(data) / per_second)
            peer.close()
            if time.monotonic() > until:
                return

    return attack


def _topics(size: int) -> Attack:
    """Subscribes to ever more topics of so many bytes."""

    def attack(port: int, until: float, rng: Random) -> None:
        for peer in _again(lambda: RawPeer(port, "SUB")):
            with suppress(OSError):
                while time.monotonic() < until:
                    topics = (b"\x01" + rng.randbytes(size) for _ in range(64))
                    peer.socket.sendall(b"".join(map(zmtp_frame, topics)))
            peer.close()
            if time.monotonic() > until:
                return

    return attack


def _granting(window: int, received: int = 0, count: int = 1, pause_s: float = 1.0) -> Attack:
    """Subscribers in mode=credit that grant, and never take anything."""

    def attack(port: int, until: float, rng: Random) -> None:
        peers: list[RawPeer | None] = [None] * count
        while time.monotonic() < until:
            for at, peer in enumerate(peers):
                try:
                    if peer is None:
                        peer = peers[at] = RawPeer(port, "DEALER")
                    peer.send(encode_credit(Credit(0, received, window)))
                except OSError:
                    peers[at] = None
            time.sleep(pause_s)

    return attack


def _leaving(port: int, until: float, rng: Random) -> None:
    """Grants and leaves, again and again."""
    while time.monotonic() < until:
        with suppress(OSError):
            peer = RawPeer(port, "DEALER")
            peer.send(encode_credit(Credit(0, 0, 16)))
            peer.close()


def _idle(port: int, until: float, rng: Random) -> None:
    """1,100 connections that say nothing; as many as this process may open."""
    import socket

    held = []
    for _ in range(1100):
        with suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=0.5))
    time.sleep(max(0.0, until - time.monotonic()))
    for each in held:
        each.close()


def _big(port: int, until: float, rng: Random) -> None:
    """A publisher of packets of 12 MiB, well formed, as fast as they go."""
    packets = [encode_info(CODES, 5, 0)]
    packets += [encode_frame(_frame(seq, 12 * 2**16), CODES, 5) for seq in range(2)]
    _pouring("PUB", b"".join(map(zmtp_frame, packets)))(port, until, rng)


TINY = zmtp_frame(b"abc") * 2000
PARTS = zmtp_frame(bytes(1000), MORE) * 64
TINY_PARTS = zmtp_frame(b"", MORE) * 32768
SUBSCRIBE = zmtp_frame(b"\x01x")
GRANT = zmtp_frame(encode_credit(Credit(0, 0, 16)))

# Name -> what is attacked ("pub" and "credit" publish, "sub" subscribes), and how.
CASES: dict[str, tuple[str, Attack | None]] = {
    "pub: nobody": ("pub", None),
    "pub: 50,000 messages/s": ("pub", _pouring("SUB", zmtp_frame(b"abc") * 500, 250e3)),
    "pub: 100,000 messages/s": ("pub", _pouring("SUB", zmtp_frame(b"abc") * 1000, 500e3)),
    "pub: 200,000 messages/s": ("pub", _pouring("SUB", zmtp_frame(b"abc") * 2000, 1e6)),
    "pub: messages unpaced": ("pub", _pouring("SUB", TINY)),
    "pub: subscriptions unpaced": ("pub", _pouring("SUB", SUBSCRIBE * 2000)),
    "pub: parts without end": ("pub", _pouring("SUB", PARTS)),
    "pub: empty parts without end": ("pub", _pouring("SUB", TINY_PARTS)),
    "pub: topics of 900 bytes without end": ("pub", _topics(900)),
    "pub: topics of 60 bytes without end": ("pub", _topics(60)),
    "pub: 1,100 idle connections": ("pub", _idle),
    "credit: nobody": ("credit", None),
    "credit: 50,000 messages/s": ("credit", _pouring("DEALER", zmtp_frame(b"abc") * 500, 250e3)),
    "credit: messages unpaced": ("credit", _pouring("DEALER", TINY)),
    "credit: grants unpaced": ("credit", _pouring("DEALER", GRANT * 1000)),
    "credit: parts without end": ("credit", _pouring("DEALER", PARTS)),
    "credit: empty parts without end": ("credit", _pouring("DEALER", TINY_PARTS)),
    "credit: window 0": ("credit", _granting(0)),
    "credit: never takes": ("credit", _granting(16)),
    "credit: 2^63-1, never takes": ("credit", _granting(2**63 - 1, 2**63 - 1)),
    "credit: 256 strangers, window 0": ("credit", _granting(0, count=256)),
    "credit: 256 strangers, never take": ("credit", _granting(16, count=256)),
    "credit: grants and leaves": ("credit", _leaving),
    "credit: 1,100 idle connections": ("credit", _idle),
    "sub: packets of 12 MiB": ("sub", _big),
    "sub: parts without end": ("sub", _pouring("PUB", PARTS)),
    "sub: empty parts without end": ("sub", _pouring("PUB", TINY_PARTS)),
}


def run(seed: int, seconds: float, cases: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Each case for so many seconds; `cases` are all where there are none.

    Returns:
        Rows: `case`; `late_ms`, how late the event loop was at most; `grown_mb`, by how much the
        memory rose above that of before; `got`, the frames of the good neighbour; `sent`, those
        that were (of a publisher); `due`, those that there was time for.
    """
    return [_case(name, seed, seconds) for name in cases or CASES]


def _case(name: str, seed: int, seconds: float) -> dict[str, Any]:
    mode, attack = CASES[name]
    with _child("victim", mode, seconds) as victim:
        assert victim.stdout is not None
        endpoint = json.loads(victim.stdout.readline())
        port = endpoint.rpartition(":")[2]
        publishes = mode != "sub"
        good = "subscriber" if publishes else "publisher"
        with _child(good, mode, endpoint, seconds) as neighbour:
            victim.stdout.readline()  # the neighbour is there
            arguments = ("attacker", name, port, seconds, seed)
            with _child(*arguments) if attack else nullcontext() as attacker:
                rest = victim.communicate(timeout=60 + 2 * seconds)[0].splitlines()
                row = json.loads(rest[-1])
                if attacker is not None:
                    attacker.kill()
            said = json.loads(neighbour.communicate(timeout=60)[0].splitlines()[-1])
            if publishes:
                row["got"] = said
    due = round(PER_SECOND * seconds)
    return {"case": name, **row, "due": due}


@contextmanager
def _child(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.campaign.peers", *map(str, arguments)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _memory(field: str) -> int:
    with Path("/proc/self/status").open() as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


class _Measured:
    """How late the event loop is, and how much memory it took, while this runs."""

    def __init__(self) -> None:
        self.late_s = 0.0
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
        self._before = _memory("VmHWM")

    async def tick(self) -> None:
        while True:
            due = time.monotonic() + TICK_S
            await anyio.sleep(TICK_S)
            self.late_s = max(self.late_s, time.monotonic() - due)

    def row(self, got: int = 0) -> dict[str, Any]:
        grown = max(0, _memory("VmHWM") - self._before)
        return {"late_ms": round(1e3 * self.late_s, 1), "grown_mb": round(grown / 1e6), "got": got}


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


async def _endpoint(node: ZmqSink | ZmqSource) -> str:
    """Where it is bound, as soon as it is."""
    for _ in range(2000):
        if not node.endpoint.endswith(":0"):
            break
        await anyio.sleep(0.01)
    return node.endpoint


async def _publish(mode: str, seconds: float) -> None:
    sink = ZmqSink("zmq+tcp://127.0.0.1:0", mode, wait_subscribers=1, timeout_s=3)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sink.open, CODES)
        _say(await _endpoint(sink))
    _say("here")
    measured = _Measured()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(measured.tick)
        begun = time.monotonic()
        sent = 0
        for seq in range(round(PER_SECOND * seconds)):
            await anyio.sleep(max(0.0, begun + seq / PER_SECOND - time.monotonic()))
            with anyio.move_on_at(anyio.current_time() + begun + seconds - time.monotonic()) as end:
                await sink.write(_frame(seq))
            if end.cancelled_caught:
                break
            sent += 1
        tasks.cancel_scope.cancel()
    _say(measured.row() | {"sent": sent})
    await sink.aclose()


async def _subscribe(mode: str, endpoint: str) -> None:
    source = ZmqSource(endpoint, mode)
    await source.open()
    got = 0
    async for _ in source.frames():
        got += 1
    _say(got)
    await source.aclose()


async def _listen(seconds: float) -> None:
    """Subscribes, at an address that publishers connect to; takes a frame at a time, slowly."""
    source = ZmqSource("zmq+tcp://127.0.0.1:0", bind=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(source.open)
        _say(await _endpoint(source))
    _say("here")
    measured, got = _Measured(), 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(measured.tick)
        with anyio.move_on_after(seconds):
            async for _ in source.frames():
                got += 1
        tasks.cancel_scope.cancel()
    _say(measured.row(got))
    await source.aclose()


async def _neighbour(endpoint: str, seconds: float) -> None:
    """A good publisher, which connects."""
    sink = ZmqSink(endpoint, bind=False, wait_subscribers=1)
    await sink.open(CODES)
    begun = time.monotonic()
    for seq in range(round(PER_SECOND * (seconds + 1))):
        await anyio.sleep(max(0.0, begun + seq / PER_SECOND - time.monotonic()))
        await sink.write(_frame(seq))
    _say(0)
    await sink.aclose()


def _main(role: str, *rest: str) -> None:
    match role, rest:
        case "victim", (mode, seconds):
            if mode == "sub":
                anyio.run(_listen, float(seconds))
            else:
                anyio.run(_publish, mode, float(seconds))
        case "subscriber", (mode, endpoint, _):
            anyio.run(_subscribe, mode, endpoint)
        case "publisher", (_, endpoint, seconds):
            anyio.run(_neighbour, endpoint, float(seconds))
        case "attacker", (name, port, seconds, seed):
            attack = CASES[name][1]
            assert attack is not None
            attack(int(port), time.monotonic() + float(seconds), Random(int(seed)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
