"""A microphone's way into `streamenc serve` by WebRTC, and by a WebSocket: which is quicker?

    pip install 'streamenc[webrtc]'
    streamenc serve -m nano                                  # in another terminal
    python examples/serve_webrtc.py http://127.0.0.1:8765 [SECONDS [MODEL]]

Both get the same sound, 20 ms at a time, as fast as it would be spoken: silence, with a click every
half second. For each packet of codes it is counted how long after its last sample was spoken the
packet is here. The clicks show that the times are right: codes change where one was sent.
"""

import asyncio
import json
import sys
import time
import urllib.request
from fractions import Fraction

import aiortc
import av
import numpy as np
from websockets.asyncio.client import connect

from streamenc.io.network import wire

RATE, FRAME = 48_000, 960
CLICK_EVERY = RATE // 2
Arrival = tuple[float, wire.Data]  # seconds, on time.perf_counter


def clicks(seconds: float) -> np.ndarray:
    """int16 (samples,), a few milliseconds of noise each half second."""
    sound = np.zeros(round(seconds * RATE) // FRAME * FRAME, np.int16)
    noise = np.random.default_rng(0).integers(-12_000, 12_000, 240, dtype=np.int16)
    for start in range(CLICK_EVERY, len(sound) - len(noise), CLICK_EVERY):
        sound[start : start + len(noise)] = noise
    return sound


class Paced:
    """Gives sound as it would be spoken; `began` is when its first sample was."""

    def __init__(self, sound: np.ndarray) -> None:
        self.sound, self.at, self.began = sound, 0, 0.0

    async def next(self) -> np.ndarray | None:
        self.began = self.began or time.perf_counter()
        await asyncio.sleep(self.began + (self.at + FRAME) / RATE - time.perf_counter())
        piece = self.sound[self.at : self.at + FRAME]
        self.at += len(piece)
        return piece if len(piece) else None


class Microphone(aiortc.MediaStreamTrack):
    kind = "audio"

    def __init__(self, paced: Paced) -> None:
        super().__init__()
        self.paced, self.through = paced, asyncio.Event()

    async def recv(self) -> av.AudioFrame:
        start = self.paced.at
        piece = await self.paced.next()
        if piece is None:
            self.through.set()
            piece = np.zeros(FRAME, np.int16)
        frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, start, Fraction(1, RATE)
        return frame


async def by_webrtc(server: str, model: str, paced: Paced) -> list[Arrival]:
    connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
    channel = connection.createDataChannel("streamenc.v1")
    arrivals: list[Arrival] = []

    @channel.on("message")
    def take(message: bytes | str) -> None:
        packet = wire.decode(message) if isinstance(message, bytes) else message
        if isinstance(packet, wire.Data):
            arrivals.append((time.perf_counter(), packet))

    microphone = Microphone(paced)
    connection.addTrack(microphone)
    await connection.setLocalDescription(await connection.createOffer())
    body = json.dumps({"model": model, "sdp": connection.localDescription.sdp}).encode()
    request = urllib.request.Request(f"{server}/v1/offer", body)
    answer = await asyncio.to_thread(lambda: json.load(urllib.request.urlopen(request)))
    await connection.setRemoteDescription(aiortc.RTCSessionDescription(answer["sdp"], "answer"))
    await microphone.through.wait()
    await connection.close()
    return arrivals


async def by_websocket(server: str, model: str, paced: Paced) -> list[Arrival]:
    arrivals: list[Arrival] = []
    address = server.replace("http", "ws", 1) + "/v1/stream"
    async with connect(address, subprotocols=["streamenc.v1"], compression=None) as socket:
        await socket.send(
            json.dumps({"type": "open", "model": model, "format": "s16", "rate": RATE})
        )

        async def take() -> None:
            async for message in socket:
                packet = wire.decode(message) if isinstance(message, bytes) else message
                if isinstance(packet, wire.Data):
                    arrivals.append((time.perf_counter(), packet))

        taking = asyncio.create_task(take())
        seq = 0
        while (piece := await paced.next()) is not None:
            await socket.send(wire.encode_samples(piece[None], seq, seq * FRAME))
            seq += 1
        taking.cancel()
    return arrivals


def report(name: str, arrivals: list[Arrival], paced: Paced) -> None:
    arrivals = arrivals[25:]  # the first half second: connections and silence settle
    late = [1e3 * (at - paced.began - (d.pts + d.duration) / RATE) for at, d in arrivals]
    p50, p90, p99 = np.percentile(late, (50, 90, 99))
    heard = sent = 0
    packets = [packet for _, packet in arrivals]
    for i in range(1, len(packets) - 1):
        if (packets[i].pts - 1) % CLICK_EVERY + packets[i].duration >= CLICK_EVERY:
            sent += 1
            heard += any((packets[i - 1].data != d.data).any() for d in packets[i : i + 2])
    print(f"{name:10} p50 {p50:5.1f} ms   p90 {p90:5.1f}   p99 {p99:5.1f}   clicks {heard}/{sent}")


async def main(server: str, seconds: str = "10", model: str = "nano") -> None:
    for name, way in (("WebSocket", by_websocket), ("WebRTC", by_webrtc)) * 2:
        paced = Paced(clicks(float(seconds)))
        report(name, await way(server, model, paced), paced)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:4]))
