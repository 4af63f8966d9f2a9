"""A client of `streamenc serve` without streamenc: websockets, a msgpack library, docs/server.

    streamenc serve -m nano                              # in another terminal
    python examples/serve_raw_client.py ws://127.0.0.1:8765 nano sound.wav

Sends a WAV of 16 bits, as it would come from a microphone, and prints the time and the codes of
each frame. It goes on where it was after the network, or the server, has failed. A client in
another language needs no more than this, either.
"""

import asyncio
import json
import math
import struct
import sys
import wave
from array import array

import msgspec
import websockets
from websockets.asyncio.client import ClientConnection, connect

ITEM = {"u1": "B", "u2": "H", "u4": "I", "f2": "e", "f4": "f"}  # as the struct module calls them
HEADER = b"SE\1\3"
WINDOW = 64  # messages that may be on their way to us
PIECE_SECONDS = 0.02
TRY_AGAIN_SECONDS = 0.2


class Stream:
    """One stream, however many connections it takes.

    token      What a resumption needs; "" before the first connection.
    received   Numbered messages that came: packets of data, and messages with an `n`.
    next_seq   Of our ordered messages, the one that is sent next.
    allowed    Of these, the first that must wait for more credit.
    closed     Whether all has come.
    """

    def __init__(self, url: str, model: str, sound: wave.Wave_read) -> None:
        if sound.getsampwidth() != 2:
            sys.exit("wanted a WAV of 16 bits")
        self.url, self.model = f"{url}/v1/stream", model
        self.rate, self.channels = sound.getframerate(), sound.getnchannels()
        self.samples = array("h", sound.readframes(sound.getnframes()))  # interleaved
        self.piece = round(PIECE_SECONDS * self.rate)
        self.pieces = math.ceil(len(self.samples) / self.channels / self.piece)
        self.token, self.received, self.next_seq, self.allowed = "", 0, 0, 0
        self.closed = False
        self.credit = asyncio.Event()

    async def run(self) -> None:
        while not self.closed:
            try:
                await self.connected()
            except (OSError, websockets.ConnectionClosed, websockets.InvalidHandshake) as error:
                print(f"{error}; trying again", file=sys.stderr)
                await asyncio.sleep(TRY_AGAIN_SECONDS)

    async def connected(self) -> None:
        """One connection, to its end."""
        url = self.url + ("?resume" if self.token else "")
        async with connect(url, subprotocols=["streamenc.v1"], max_size=2**24) as socket:
            await socket.send(json.dumps(self.hello()))
            sending = None
            try:
                async for message in socket:
                    if isinstance(message, str):
                        answer = json.loads(message)
                        self.take_message(answer)
                        if answer["type"] in ("opened", "resumed"):
                            sending = asyncio.create_task(self.send(socket))
                    else:
                        await self.take_packet(socket, message)
                    if self.closed:
                        return
            finally:
                if sending is not None:
                    sending.cancel()
                    await asyncio.gather(sending, return_exceptions=True)

    def hello(self) -> dict:
        if self.token:
            return {
                "type": "resume",
                "token": self.token,
                "received": self.received,
                "window": WINDOW,
            }
        return {
            "type": "open",
            "model": self.model,
            "format": "s16",
            "rate": self.rate,
            "channels": self.channels,
            "window": WINDOW,
        }

    async def send(self, socket: ClientConnection) -> None:
        """What the server has not got yet, as fast as it takes it, and that this is all."""
        while self.next_seq < self.pieces:
            while self.next_seq >= self.allowed:
                self.credit.clear()
                await self.credit.wait()
            await socket.send(self.packet(self.next_seq))
            self.next_seq += 1
            await asyncio.sleep(PIECE_SECONDS)
        await socket.send(json.dumps({"type": "close", "seq": self.pieces}))

    def packet(self, seq: int) -> bytes:
        """The data packet of a piece: pts and shape count samples, channels lie one by one."""
        start = seq * self.piece
        piece = self.samples[start * self.channels : (start + self.piece) * self.channels]
        if sys.byteorder == "big":
            piece.byteswap()
        payload = b"".join(
            piece[channel :: self.channels].tobytes() for channel in range(self.channels)
        )
        samples = len(piece) // self.channels
        shape = [self.channels, samples]
        fields = [0, 0, seq, start, samples, 0, 0, 1.0, "i2", shape, payload]
        return HEADER + b"D" + msgspec.msgpack.encode(fields)

    def take_message(self, message: dict) -> None:
        kind = message["type"]
        if kind == "opened":
            self.token, self.allowed = message["token"], message["window"]
        elif kind == "resumed":
            self.token, self.received = message["token"], message["n"]
            self.next_seq = message["next_seq"]
            self.allowed = self.next_seq + message["window"]
        elif kind == "closed":
            self.closed = True
        elif kind == "error" and message["code"] not in ("engine_gone", "ending"):
            sys.exit(f"{message['code']}: {message['message']}")
        elif "n" in message:
            self.received = message["n"] + 1

    async def take_packet(self, socket: ClientConnection, packet: bytes) -> None:
        if packet[:2] != b"SE" or packet[2] != 1:
            raise ValueError(f"wanted a packet of version 1.x; got {packet[:4]!r}")
        kind, fields = packet[4:5], msgspec.msgpack.decode(packet[5:])
        if kind == b"C":
            _, received, window = fields
            self.allowed = received + window
            self.credit.set()
        elif kind == b"D":
            self.received += 1
            pts, dtype, shape, payload = fields[3], *fields[8:11]
            items = struct.unpack(f"<{math.prod(shape)}{ITEM[dtype]}", payload)
            print(f"{pts / self.rate:.3f} s", *items, flush=True)
            if self.received % (WINDOW // 4) == 0:
                credit = msgspec.msgpack.encode([0, self.received, WINDOW])
                await socket.send(HEADER + b"C" + credit)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    with wave.open(sys.argv[3]) as file:
        asyncio.run(Stream(sys.argv[1], sys.argv[2], file).run())
