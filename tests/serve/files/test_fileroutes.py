"""Files over HTTP: what comes out is what `streamenc encode FILE` writes, and bounds hold."""

from __future__ import annotations

import asyncio
import io
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import streamenc
from streamenc.coding.wholefile import encode_file
from streamenc.io.files.tables.stacked import Recording
from streamenc.nodes.codes.interleaving import Layout, Layouter
from streamenc.serve.files import filecoding
from tests.serve.httpsite import Visit, run
from tests.support import zoo
from tests.support.media import write_wav

ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2.6 s in stereo, of another rate than any model's."""
    path = tmp_path_factory.mktemp("talk") / "talk.wav"
    noise = np.random.default_rng(1).standard_normal((2, 57_500)).astype(np.float32)
    return write_wav(path, np.cumsum(noise, axis=1) / 900, 22_050)


@pytest.fixture(scope="module")
def body(talk: Path) -> bytes:
    return talk.read_bytes()


def read(path: Path, content: bytes) -> Recording:
    path.write_bytes(content)
    return streamenc.read(path)


def test_codes_are_those_of_encode(visit: Visit, talk: Path, body: bytes) -> None:
    alone = encode_file(zoo.codec("nano"), talk, codebooks=3)

    async def main() -> None:
        async with visit() as (client, _):
            answer = await client.post("/v1/encode?model=nano&codebooks=3", content=body)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert told["codes"] == alone.data.tolist()
            assert (told["samples"], told["rate"]) == (57_500, 22_050)
            assert told["frame_rate"] == float(alone.info.rate)
            assert told["model"] == "nano" and len(told["fingerprint"]) > 20

    run(main)


def test_live_streams_have_their_share(
    visit: Visit, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others have sessions, each step is followed by a rest."""
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    async def main() -> None:
        async with visit() as (client, site):
            engine = site.service.engine("nano")
            alone = await client.post("/v1/encode?model=nano", content=body)
            assert not rests
            with engine.open("nano") as session:
                await session.admitted()
                with monkeypatch.context() as patched:
                    of_file = SimpleNamespace(sleep=sleep, shield=asyncio.shield)
                    patched.setattr(filecoding, "asyncio", of_file)
                    beside = await client.post("/v1/encode?model=nano", content=body)
            assert len(rests) >= 2 and all(seconds > 0 for seconds in rests)
            assert beside.json()["codes"] == alone.json()["codes"]

    run(main)


@pytest.mark.parametrize("layout", ["flat", "delay"])
def test_layouts_are_those_of_encode(visit: Visit, talk: Path, body: bytes, layout: str) -> None:
    alone = encode_file(zoo.codec("nano"), talk, codebooks=3)
    layouter = Layouter(Layout.of(layout), 3, alone.info.codebook_size)
    wanted = np.concatenate([layouter.push(alone.data), layouter.flush()], axis=1)

    async def main() -> None:
        async with visit() as (client, _):
            url = f"/v1/encode?model=nano&codebooks=3&layout={layout}"
            told = (await client.post(url, content=body)).json()
            assert told["codes"] == wanted.tolist()
            assert told["codebook_size"] == layouter.entries
            wrong = await client.post("/v1/encode?model=mel&layout=flat", content=body)
            assert wrong.status_code == 422

    run(main)


@pytest.mark.parametrize("name", ["nano", "mel"])
def test_a_recording_is_that_of_encode(
    visit: Visit, talk: Path, body: bytes, tmp_path: Path, name: str
) -> None:
    alone = encode_file(zoo.codec(name), talk)

    async def main() -> None:
        async with visit() as (client, _):
            answer = await client.post(
                f"/v1/encode?model={name}",
                content=body,
                headers={"accept": f"text/html, {ARROW}"},
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"] == ARROW
            recording = read(tmp_path / "answer.arrows", answer.content)
            assert recording.info == alone.info
            assert np.array_equal(recording.data, alone.data)
            assert np.array_equal(recording.times, alone.times)
            whole = (await client.post(f"/v1/encode?model={name}", content=body)).json()
            found = np.array(whole.get("codes") or whole["features"], alone.data.dtype)
            assert np.array_equal(found, alone.data)

    run(main)


def test_images(visit: Visit, tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 255, (40, 56, 3), np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(pixels).save(path)
    alone, body = encode_file(zoo.codec("dinov2"), path), path.read_bytes()

    async def main() -> None:
        async with visit() as (client, _):
            answer = (await client.post("/v1/encode?model=dinov2", content=body)).json()
            assert np.array_equal(np.array(answer["features"], np.float32), alone.data)
            arrow = await client.post("/v1/encode?model=dinov2&format=arrow", content=body)
            recording = read(tmp_path / "answer.arrows", arrow.content)
            assert np.array_equal(recording.data, alone.data) and recording.info == alone.info
            small = await client.post("/v1/encode?model=dinov2&size=abc", content=body)
            assert small.status_code == 400

        async with visit(max_pixels=56 * 40 - 1) as (client, _):
            answer = await client.post("/v1/encode?model=dinov2", content=body)
            assert answer.status_code == 415
            assert "2239 pixels" in answer.json()["error"]["message"]

    run(main)


def test_lines_and_events(visit: Visit, body: bytes) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            whole = (await client.post("/v1/encode?model=nano", content=body)).json()
            lines = await client.post("/v1/encode?model=nano&format=ndjson", content=body)
            events = await client.post(
                "/v1/encode?model=nano", content=body, headers={"accept": "text/event-stream"}
            )
        made = [json.loads(line) for line in lines.text.splitlines()]
        assert made[0]["info"]["kind"] == "codes"
        assert sum((line["codes"][0] for line in made[1:]), []) == whole["codes"][0]
        told = [event.removeprefix("data: ") for event in events.text.split("\n\n") if event]
        assert list(map(json.loads, told)) == made

    run(main)


def test_there_and_back(visit: Visit, body: bytes, tmp_path: Path) -> None:
    """Of each form of codes the same sound comes, as long as what was encoded."""

    async def main() -> None:
        async with visit() as (client, _):
            sounds = []
            for format in ("json", "arrow", "ndjson"):
                codes = await client.post(f"/v1/encode?model=nano&format={format}", content=body)
                sound = await client.post("/v1/decode?model=nano", content=codes.content)
                assert sound.status_code == 200, sound.text
                assert sound.headers["content-type"] == "audio/wav"
                sounds.append(read(tmp_path / f"{format}.wav", sound.content))
            assert all(np.array_equal(sounds[0].data, other.data) for other in sounds[1:])
            rate = sounds[0].info.rate
            assert abs(sounds[0].data.shape[1] - 57_500 * rate / 22_050) <= 1
            assert np.abs(sounds[0].data).max() > 0
            for format, media_type in (("flac", "audio/flac"), ("opus", "audio/ogg")):
                sound = await client.post(
                    "/v1/decode?model=nano", content=codes.content, headers={"accept": media_type}
                )
                assert sound.headers["content-type"] == media_type
                back = read(tmp_path / f"back.{format}", sound.content)
                assert abs(back.data.shape[1] / back.info.rate - 57_500 / 22_050) < 0.05

    run(main)


def test_scaled_codes_and_back(visit: Visit, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).standard_normal((1, 26_000)).astype(np.float32)
    path = write_wav(tmp_path / "short.wav", noise / 9, 22_050)
    alone, body = encode_file(zoo.codec("encodec-48k"), path), path.read_bytes()

    async def main() -> None:
        async with visit() as (client, _):
            url = "model=encodec-48k"
            codes = await client.post(f"/v1/encode?{url}", content=body)
            arrow = await client.post(f"/v1/encode?{url}&format=arrow", content=body)
            recording = read(tmp_path / "answer.arrows", arrow.content)
            assert np.array_equal(recording.scales, alone.scales)
            assert np.array_equal(np.float32(codes.json()["scales"]), alone.scales)
            assert codes.json()["codes"] == alone.data.tolist() == recording.data.tolist()
            sounds = [
                await client.post(f"/v1/decode?{url}&format=wav-f32", content=made.content)
                for made in (codes, arrow)
            ]
            assert [sound.status_code for sound in sounds] == [200, 200], sounds[0].text
            assert sounds[0].content == sounds[1].content

    run(main)


def test_compressed_batches_are_refused(visit: Visit, body: bytes) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            plain = await client.post("/v1/encode?model=nano&format=arrow", content=body)
            reader = pa.ipc.open_stream(plain.content)
            packed = io.BytesIO()
            options = pa.ipc.IpcWriteOptions(compression="zstd")
            with pa.ipc.new_stream(packed, reader.schema, options=options) as writer:
                for batch in reader:
                    writer.write_batch(batch)
            answer = await client.post("/v1/decode?model=nano", content=packed.getvalue())
            assert answer.status_code == 415
            assert "compressed" in answer.json()["error"]["message"]

    run(main)


def test_a_file_that_was_cut_short_is_told_without_its_path_here(visit: Visit, body: bytes) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            answer = await client.post("/v1/encode?model=nano", content=body[:100_000])
            assert answer.json()["broken"].startswith("the file holds 100,000 of")
            url = "/v1/encode?model=nano&format=ndjson"
            told = (await client.post(url, content=body[:100_000])).text
            assert "the file holds 100,000 of" in told and tempfile.gettempdir() not in told

    run(main)


def test_a_form_is_told_to_be_none(visit: Visit, body: bytes) -> None:
    async def main() -> None:
        async with visit() as (client, _):
            answer = await client.post("/v1/encode?model=nano", files={"file": body})
            assert answer.status_code == 415
            assert "--data-binary" in answer.json()["error"]["message"]

    run(main)
