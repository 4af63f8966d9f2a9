"""Clients of `streamenc serve`: live streams that resume by themselves (the extra `serve`).

    async with streamenc.client.connect("ws://127.0.0.1:8765", model="nano") as stream:
        await stream.send(samples)
        await stream.close()
        async for piece in stream:
            print(piece.seconds, piece.data)

docs/server describes the protocol, and shows more.
"""

from streamenc.io.network.websocket.clientinput import Samples
from streamenc.io.network.websocket.connecting import connect
from streamenc.io.network.websocket.ledger import Refusal, Snapshot
from streamenc.io.network.websocket.liveclient import (
    ClientStatistics,
    ClientStream,
    Event,
    Passed,
    Received,
)
from streamenc.io.network.websocket.oneshot import decode, encode

__all__ = [
    "ClientStatistics",
    "ClientStream",
    "Event",
    "Passed",
    "Received",
    "Refusal",
    "Samples",
    "Snapshot",
    "connect",
    "decode",
    "encode",
]
