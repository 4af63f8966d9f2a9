"""A WebRTC client at a server on loopback: a paced track goes out, tokens come back."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Self

import aiortc
import av
import httpx
import numpy as np
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import is_rtcp

from streamenc.io.network import wire
from streamenc.io.network.websocket.livemessages import encode_message, read_from_server
from streamenc.serve.adapters.rtcpeer import gather_at

RATE, FRAME = 48_000, 960


class Microphone(aiortc.MediaStreamTrack):
    """Sound, int16 (samples,), 20 ms at a time as time passes, and then its end.

    given    When each frame was handed out.
    through  Set once all of it was.
    """

    kind = "audio"

    def __init__(self, sound: np.ndarray[Any, Any]) -> None:
        super().__init__()
        self._sound, self._at, self._began = sound, 0, 0.0
        self.given: list[float] = []
        self.through = asyncio.Event()

    async def recv(self) -> av.AudioFrame:
        self._began = self._began or time.perf_counter()
        due = self._began + (self._at + FRAME) / RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        piece = self._sound[self._at : self._at + FRAME]
        if self.readyState != "live" or len(piece) < FRAME:
            self.through.set()
            self.stop()
            raise MediaStreamError
        frame = av.AudioFrame.from_ndarray(piece[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._at, Fraction(1, RATE)
        self._at += FRAME
        self.given.append(time.perf_counter())
        return frame


class RtcClient:
    """One peer connection with one track.

    messages  What came on the data channel: packets decoded, JSON as messages.
    came      When.
    """

    def __init__(self, url: str, track: aiortc.MediaStreamTrack, **asked: Any) -> None:
        self._url, self._asked = url, {"model": "nano", **asked}
        self.track = track
        self.messages: list[Any] = []
        self.came: list[float] = []
        self.peer = ""
        self._changed = asyncio.Event()
        self.connection = aiortc.RTCPeerConnection(aiortc.RTCConfiguration(iceServers=[]))
        self.channel = self.connection.createDataChannel("streamenc.v1")
        self.channel.on("message", self._take)
        self.channel.on("close", self._changed.set)
        self.sender = self.connection.addTrack(track)

    def drop(self, lost: Callable[[int], bool]) -> None:
        """Loses packets of sound, counted from the first."""
        transport, count = self.sender.transport, itertools.count()
        send = transport._send_rtp

        async def sometimes(data: bytes) -> None:
            if is_rtcp(data) or not lost(next(count)):
                await send(data)

        transport._send_rtp = sometimes

    async def __aenter__(self) -> Self:
        answer = await self.offer()
        assert answer.status_code == 200, answer.text
        self.peer = answer.json()["peer"]
        described = aiortc.RTCSessionDescription(answer.json()["sdp"], "answer")
        await self.connection.setRemoteDescription(described)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.track.stop()
        await self.connection.close()

    async def offer(self) -> httpx.Response:
        offer = await self.connection.createOffer()
        gather_at(self.connection, "127.0.0.1")
        await self.connection.setLocalDescription(offer)
        body = {"sdp": self.connection.localDescription.sdp, "type": "offer", **self._asked}
        async with httpx.AsyncClient() as http:
            return await http.post(f"{self._url}/v1/offer", json=body)

    def say(self, message: Any) -> None:
        self.channel.send(encode_message(message))

    def _take(self, message: bytes | str) -> None:
        text = isinstance(message, str)
        self.messages.append(read_from_server(message) if text else wire.decode(message))
        self.came.append(time.perf_counter())
        self._changed.set()

    async def until(self, kind: type[Any], count: int = 1, seconds: float = 15.0) -> Any:
        """The first message of a kind, or the one that is `count`-th."""
        async with asyncio.timeout(seconds):
            while True:
                found = [message for message in self.messages if isinstance(message, kind)]
                if len(found) >= count:
                    return found[count - 1]
                assert self.channel.readyState != "closed", self.messages[-1:]
                self._changed.clear()
                await self._changed.wait()

    @property
    def data(self) -> list[wire.Data]:
        return [message for message in self.messages if isinstance(message, wire.Data)]

    def codes(self) -> np.ndarray[Any, Any]:
        return np.concatenate([data.data for data in self.data], axis=1)
