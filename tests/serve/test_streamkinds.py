"""What goes in and out of a stream beside sound to codes: codes, images, texts, other rates."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from PIL import Image

from streamenc.engine.engine import Engine
from streamenc.engine.remote.engineserver import EngineServer
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.websocket.livemessages import Dropped, Error, Open, Resume
from streamenc.io.network.wire import Data, Info, decode, encode_bytes, encode_frame
from streamenc.serve.service import Service
from streamenc.serve.streams.sessionstore import FolderStore
from tests.serve.conftest import Served, nano, resnet, until
from tests.serve.test_streamsocket import offline, sent_in_pieces, sound
from tests.support import zoo
from tests.support.rawsocket import RawSocket


def test_codes_go_in_and_sound_comes_out(served: Served) -> None:
    samples = sound()
    codes = nano().encode(samples[None])
    heard = nano().decode(codes)[0].numpy()

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            opened = await socket.open(model="nano", direction="decode")
            tick = opened.input.time_base[1] // 50
            for at, frame in enumerate(codes[0].numpy().T.astype(np.uint16)):
                await socket.send(data_packet(frame[:, None], at, at * tick, tick))
            socket.seq = codes.shape[2]
            await socket.close()
            return socket

    socket = asyncio.run(go())
    assert socket.info is not None and socket.info.info.kind == "audio"
    got = socket.codes()
    np.testing.assert_allclose(got, heard[:, : got.shape[1]], atol=1e-5)
    assert abs(got.shape[1] - heard.shape[1]) <= 320


def test_images_go_in_one_by_one(served: Served) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (5, 40, 60, 3), np.uint8)

    async def go(broken: bool) -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="resnet", window=16)
            for at, image in enumerate(images):
                await socket.send(encode_bytes(png(image), at, at * 3000, 3000))
                if broken and at == 2:
                    await socket.leave(abort=True)
                    resumed = await socket.resume()
                    for again in range(resumed.next_seq, at + 1):
                        packet = encode_bytes(png(images[again]), again, again * 3000, 3000)
                        await socket.send(packet)
            socket.seq = len(images)
            await socket.close()
            return socket

    whole, broken = asyncio.run(go(False)), asyncio.run(go(True))
    assert [d.pts for d in whole.data] == [3000 * i for i in range(5)]
    assert [d.duration for d in whole.data] == [3000] * 5
    np.testing.assert_array_equal(whole.codes(), broken.codes())
    assert whole.codes().shape[0] == resnet().spec.output.channels


def test_latents_that_were_not_acknowledged_are_described_by_another_server(tmp_path: Path) -> None:
    """Which knows what comes of images only once it has encoded some itself."""
    image = png(np.zeros((40, 64, 3), np.uint8))
    address, store = f"ipc://{tmp_path}/engine", FolderStore(tmp_path / "store")

    async def go() -> list[Any]:
        with Engine() as engine, EngineServer(engine, {"taesd": zoo.codec("taesd")}, address):
            async with Service([address], store=store) as service:
                await until(lambda: service.ready)
                stream = await service.open(Open("taesd", window=8))
                attachment, _ = stream.attach()
                await stream.put(decode(encode_bytes(image, 0, 0, 3000)))  # type: ignore[arg-type]
                await until(lambda: stream.packets == 1)
                attachment.detach()
            async with Service([address], store=FolderStore(tmp_path / "store")) as other:
                await until(lambda: other.ready)
                stream = await other.resume(Resume(stream.token, 0))
                attachment, told = stream.attach()
                assert told.source == "store"
                coming = aiter(attachment)
                items = [await anext(coming), await anext(coming)]
                await coming.aclose()  # type: ignore[attr-defined]
                await other.forget(stream)
                return items

    described, sent = asyncio.run(go())
    info, data = decode(described), decode(sent.packet)
    assert isinstance(info, Info) and isinstance(data, Data)
    assert info.info.shape[0] == data.data.shape[0]


def test_an_image_that_cannot_be_decoded_is_left_out(served: Served) -> None:
    rng = np.random.default_rng(0)
    images = [png(rng.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(4)]
    images[1] = images[1][:-900] + bytes(900)

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="resnet", window=16)
            for at, image in enumerate(images):
                await socket.send(encode_bytes(image, at, at * 3000, 3000))
            socket.seq = len(images)
            await socket.close()
            return socket

    socket = asyncio.run(go())
    assert [(d.pts, d.discontinuity) for d in socket.data] == [
        (0, False),
        (6000, True),
        (9000, False),
    ]
    errors = [n for n in socket.notices if isinstance(n, Error)]
    assert [(error.code, error.seq, error.fatal) for error in errors] == [("bad_packet", 1, False)]
    dropped = [m for m in socket.messages if isinstance(m, Dropped)]
    assert [(m.where, m.packets) for m in dropped] == [("input", 1)]


def test_sound_of_another_rate_goes_on_to_the_last_bit(serve: Callable[..., Served]) -> None:
    first, second = serve(), serve()
    samples = sound(6.0)

    async def go(broken: bool) -> RawSocket:
        async with RawSocket(first.url) as socket:
            opened = await socket.open(model="nano", format="f32", rate=48000, window=256)
            assert opened.exact_resume and opened.input.rate == 48000
            at = 0
            for place in (50_000, 90_000, len(samples)):
                await sent_in_pieces(socket, samples[at:place])
                at = place
                if broken and place < len(samples):
                    await socket.leave(abort=True)
                    socket.url = second.url if socket.url == first.url else first.url
                    await asyncio.sleep(0.1)
                    resumed = await socket.resume()
                    assert resumed.source == "store" and resumed.exact
                    socket.seq, socket.pts = resumed.next_seq, resumed.next_pts
                    at = resumed.next_pts
            await socket.close()
            return socket

    whole, broken = asyncio.run(go(False)), asyncio.run(go(True))
    np.testing.assert_array_equal(whole.codes(), broken.codes())
    np.testing.assert_array_equal(
        whole.codes(), offline(soxr.resample(samples, 48_000, 16_000, "HQ"))
    )


def test_sixteen_bits_are_the_same_sound(served: Served) -> None:
    samples = np.round(sound() * 32767).astype(np.int16)

    async def go() -> RawSocket:
        async with RawSocket(served.url) as socket:
            await socket.open(model="nano", format="s16")
            await sent_in_pieces(socket, samples)
            await socket.close()
            return socket

    socket = asyncio.run(go())
    np.testing.assert_array_equal(socket.codes(), offline(samples.astype(np.float32) / 32768))


def png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def data_packet(data: np.ndarray[Any, Any], seq: int, pts: int, duration: int) -> bytes:
    info = StreamInfo(
        "codes", Fraction(1, 90_000), Fraction(50), (16, None), "uint16", "nano", 1024
    )
    return encode_frame(Frame(data, pts, duration, seq), info, 0)
