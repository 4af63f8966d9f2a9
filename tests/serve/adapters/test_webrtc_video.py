"""A camera by WebRTC."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("aiortc", reason="needs the extra webrtc")
import aiortc
import av

from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.io.network.websocket.livemessages import Close, Closed
from streamenc.io.network.wire import Data
from streamenc.serve.adapters import rtcpeer
from tests.serve.adapters.rtcclient import RtcClient
from tests.serve.conftest import Served
from tests.support import zoo

pytestmark = pytest.mark.timeout(40)
WIDTH, HEIGHT, COUNT = 64, 48, 12


@pytest.fixture(scope="module")
def engine_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine]]:
    """An engine with a model of images, in place of those of sound."""
    codecs = {"taesd": zoo.codec("taesd", torch.float32)}
    folder = tmp_path_factory.mktemp("images")
    with (
        Engine(max_sessions=4, max_wait_ms=1) as engine,
        EngineServer(engine, codecs, f"ipc://{folder}/engine") as server,
    ):
        yield server.address, engine


class Camera(aiortc.MediaStreamTrack):
    """Images of one colour each, 25 a second, but for a pause of 1.5 s in their times."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._count = 0

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(0.04)
        image = np.full((HEIGHT, WIDTH, 3), (self._count * 19) % 256, np.uint8)
        frame = av.VideoFrame.from_ndarray(image, "rgb24")
        pause = 1.5 * (self._count >= COUNT // 2)
        frame.pts, frame.time_base = round((self._count / 25 + pause) * 90_000), Fraction(1, 90_000)
        self._count += 1
        return frame


def test_a_cameras_latents(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray[Any, Any]] = []

    def watched(frame: Any, max_bytes: int, pixels: Any = rtcpeer.pixels) -> Any:
        seen.append(pixels(frame, max_bytes))
        return seen[-1]

    monkeypatch.setattr(rtcpeer, "pixels", watched)

    async def talk() -> RtcClient:
        async with RtcClient(served.http, Camera(), model="taesd") as client:
            await client.until(Data, COUNT)
            client.say(Close())
            await client.until(Closed)
        return client

    client = asyncio.run(talk())
    pts = np.array([data.pts for data in client.data])
    steps = np.diff(pts)
    assert (steps > 0).all() and np.isclose(np.median(steps), 3600, atol=200)
    flagged = [data.discontinuity for data in client.data]
    assert sum(flagged) == 1 and steps.argmax() + 1 == flagged.index(True)
    codec = zoo.codec("taesd", torch.float32)
    for data, image in zip(client.data, seen, strict=False):
        wanted = codec.encode(torch.from_numpy(image.copy())[None])[0]
        np.testing.assert_allclose(data.data, wanted.numpy(), atol=2e-3)


def test_images_are_made_smaller_where_packets_would_be_too_big() -> None:
    frame = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 77, np.uint8), "rgb24")
    small = rtcpeer.pixels(frame, 100_000)
    colours, images, height, width = small.shape
    assert (colours, images) == (3, 1) and small.nbytes <= 100_000 < 1.1 * small.nbytes
    assert width / height == pytest.approx(4 / 3, rel=0.02) and abs(int(small.mean()) - 77) < 3
    assert rtcpeer.pixels(frame, 10**7).shape == (3, 1, 480, 640)
