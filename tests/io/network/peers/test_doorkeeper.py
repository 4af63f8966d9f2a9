"""Who is thrown out at a port, how often that counts, and that all others stay."""

from __future__ import annotations

import os

import anyio
import anyio.to_thread
import pytest

from streamenc.io.network.wire import Credit, encode_credit
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from tests.io.network.test_zeromq import ANY_PORT, CODES, code_frame, opened, run, until
from tests.support.rawzmtp import MORE, RawPeer, zmtp_frame


async def is_hung_up_on(peer: RawPeer) -> None:
    def wait() -> None:
        try:
            while peer.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass

    peer.socket.settimeout(10)
    await anyio.to_thread.run_sync(wait)
    peer.close()


@pytest.mark.parametrize(
    ("mode", "data"),
    [
        ("pub", zmtp_frame(b"abc") * 1000),
        ("pub", zmtp_frame(b"", MORE) * 10_000),
        ("pub", b"".join(zmtp_frame(b"\x01topic %d" % number) for number in range(200))),
        ("credit", zmtp_frame(b"abc") * 1000),
        ("credit", zmtp_frame(bytes(1000), MORE) * 30),
    ],
)
def test_who_floods_is_hung_up_on_once_and_the_others_stay(mode: str, data: bytes) -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, mode)
        async with opened(sink):
            await sink.open(CODES)
            source = ZmqSource(sink.endpoint, mode)
            async with opened(source):
                await source.open()
                kind = "SUB" if mode == "pub" else "DEALER"
                peer = await anyio.to_thread.run_sync(
                    RawPeer, int(sink.endpoint.rpartition(":")[2]), kind
                )
                peer.socket.sendall(data)
                await is_hung_up_on(peer)
                frames = source.frames()
                for seq in range(20):
                    await sink.write(code_frame(seq))
                    assert (await anext(frames)).seq == seq
                await frames.aclose()
                assert sink.remarks[0].startswith("1 peers were thrown out")
                assert sink.subscribers == 1

    run(main)


def test_who_grants_nothing_has_no_place() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT, "credit")
        async with opened(sink):
            await sink.open(CODES)
            port = int(sink.endpoint.rpartition(":")[2])
            peer = await anyio.to_thread.run_sync(RawPeer, port, "DEALER")
            peer.send(encode_credit(Credit(0, 0, 0)))
            await anyio.sleep(0.2)
            assert sink.subscribers == 0
            peer.send(encode_credit(Credit(0, 0, 3)))
            await until(lambda: sink.subscribers == 1)
            peer.close()

    run(main)


def test_connections_are_all_given_back() -> None:
    async def main() -> None:
        sink = ZmqSink(ANY_PORT)
        async with opened(sink):
            await sink.open(CODES)
            port = int(sink.endpoint.rpartition(":")[2])
            before = len(os.listdir("/proc/self/fd"))
            for _ in range(30):
                peer = await anyio.to_thread.run_sync(RawPeer, port, "SUB")
                peer.send(b"\x01")
                peer.close()
            await until(lambda: len(os.listdir("/proc/self/fd")) == before)
            assert sink.subscribers == 0

    run(main)
