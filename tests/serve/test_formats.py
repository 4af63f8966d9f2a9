"""Formats of input at a real server: what they become is encoded, also by a second server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamenc.io.network import wire
from streamenc.io.network.websocket.livemessages import Error
from tests.serve.conftest import Served, nano
from tests.serve.inputs.compressed import file_of, opus_packets, tones
from tests.serve.inputs.packets import joined, made, packed
from tests.serve.inputs.packets import sound as sound_packet
from tests.support.rawsocket import RawSocket

PCM = (tones(66_150, 44100, 2) * 20_000).astype(np.int16)
PACKETS = opus_packets(tones(72_000))
WEBM = file_of("webm", "libopus", tones(72_000), options={"live": "1"})
ASKED: dict[str, dict[str, Any]] = {
    "s16": {"format": "s16", "rate": 44100.0, "channels": 2},
    "opus": {"format": "opus"},
    "media": {"format": "media"},
}


def pieces(format: str) -> list[bytes]:
    """The data packets that a client sends."""
    if format == "s16":
        starts = range(0, PCM.shape[1], 1000)
        return [wire.encode_samples(PCM[:, a : a + 1000], n, a) for n, a in enumerate(starts)]
    if format == "opus":
        return [wire.encode_bytes(p, n, 960 * n, 960) for n, p in enumerate(PACKETS)]
    starts = range(0, len(WEBM), 700)
    return [wire.encode_bytes(WEBM[a : a + 700], n) for n, a in enumerate(starts)]


def wanted(format: str) -> np.ndarray[Any, Any]:
    """Codes of the whole, by the model itself."""
    input = made(nano().encoder.spec, **ASKED[format])
    if format == "s16":
        chunks = input.push(sound_packet(PCM, 0))
    elif format == "opus":
        chunks = [chunk for packet in PACKETS for chunk in input.push(packed(packet))]
    else:
        chunks = input.push(packed(WEBM))
    samples = joined(chunks + input.flush())
    return nano().encode(samples).numpy()[0]  # type: ignore[union-attr]


@pytest.mark.parametrize("format", ASKED)
def test_a_second_server_goes_on(serve: Callable[..., Served], format: str) -> None:
    first, second = serve(worker="0"), serve(worker="1")
    packets = pieces(format)

    async def go() -> RawSocket:
        async with RawSocket(first.url) as socket:
            opened = await socket.open(model="nano", window=1024, **ASKED[format])
            assert opened.exact_resume
            for packet in packets[: len(packets) // 2]:
                await socket.send(packet)
            await asyncio.to_thread(first.kill)
            socket.url = second.url
            resumed = await socket.resume()
            assert resumed.exact and resumed.source == "store", resumed.why
            for packet in packets[resumed.next_seq :]:
                await socket.send(packet)
            socket.seq = len(packets)
            await socket.close()
            return socket

    socket = asyncio.run(go())
    assert np.array_equal(socket.codes(), wanted(format))
    assert not [notice for notice in socket.notices if isinstance(notice, Error)]
