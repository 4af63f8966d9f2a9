"""A node that fails half way: what was heard before is kept, whole, and what is behind is told."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anyio
import numpy as np
import pytest
import soundfile

from streamenc import io
from streamenc.errors import NodeError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.graph import Graph
from streamenc.graph.node import Sink, Source
from streamenc.io.network.zeromq import ZmqSink, ZmqSource
from streamenc.io.reading import read_file
from tests.support.drive import audio_info, images, noise, sound, video_info
from tests.support.media import write_wav
from tests.support.pipes import Given
from tests.support.program import streamenc

SOUND = audio_info(16_000)
SOUND_FRAMES = sound(noise(16_000 * 2), 1600)
CODES = StreamInfo(
    "codes", Fraction(1, 24_000), Fraction(75), (8, None), "uint16", "facebook/encodec_24khz", 1024
)
CODE_FRAMES = [
    Frame(np.full((8, 3), 100 + seq, np.uint16), 960 * seq, 960, seq) for seq in range(20)
]
IMAGES = video_info(48, 64)
IMAGE_FRAMES = images(20, 48, 64)


class Unplugged(Given):
    """Gives frames, and then fails as a device does that is pulled out."""

    async def frames(self) -> AsyncIterator[Frame]:
        async for frame in super().frames():
            yield frame
        raise OSError("unplugged")


async def fail(source: Source, sink: Sink) -> None:
    graph = Graph()
    graph.sink("sink", sink, graph.source("source", source))
    with pytest.raises(NodeError, match="'source' failed: OSError: unplugged"):
        await graph.run()
    assert sink.broken == "node 'source' failed: OSError: unplugged"
    report = graph.report()
    assert (report.outcome, report.lost, report.dropped) == ("failed", 0, 0)


@pytest.mark.parametrize("ending", ["arrows", "jsonl", "ecdc"])
def test_files_of_codes_hold_all_that_came_before_a_failure(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"codes.{ending}"
    anyio.run(fail, Unplugged(CODES, CODE_FRAMES), io.sink(str(path)))
    if ending == "jsonl":
        assert sum('"seq"' in line for line in path.read_text().splitlines()) == 20
        return
    info, frames = read_file(str(path))
    assert info.kind == "codes"
    codes = np.concatenate([frame.data for frame in frames], axis=1)
    assert np.array_equal(codes, np.concatenate([frame.data for frame in CODE_FRAMES], axis=1))


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "opus"])
def test_files_of_sound_hold_all_that_came_before_a_failure(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"sound.{ending}"
    anyio.run(fail, Unplugged(SOUND, SOUND_FRAMES), io.sink(str(path)))
    heard, rate = soundfile.read(path)
    assert len(heard) == 2 * rate
    if ending in ("wav", "flac"):
        wanted = np.concatenate([frame.data[0] for frame in SOUND_FRAMES])
        assert np.allclose(heard, np.clip(wanted, -1, 1), atol=2 / 32768)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "webm"])
def test_films_hold_all_that_came_before_a_failure(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"film.{ending}"
    anyio.run(fail, Unplugged(IMAGES, IMAGE_FRAMES), io.sink(str(path)))
    source = io.source(str(path), kind="video")
    assert source.open_blocking().shape == (3, None, 48, 64)  # type: ignore[attr-defined]
    frames = list(iter(source.read, None))  # type: ignore[attr-defined]
    source.close_blocking()  # type: ignore[attr-defined]
    assert len(frames) == 20


def test_a_subscriber_gets_all_that_came_before_a_failure() -> None:
    async def main() -> None:
        sink = ZmqSink("zmq+tcp://127.0.0.1:0", mode="credit")
        await sink.open(CODES)
        got: list[int] = []

        async def subscribe() -> None:
            source = ZmqSource(sink.endpoint, mode="credit")
            try:
                await source.open()
                async for frame in source.frames():
                    got.append(frame.seq)
            finally:
                await source.aclose()

        async with anyio.create_task_group() as group:
            group.start_soon(subscribe)
            sink.open = _opened  # type: ignore[method-assign]
            await fail(Unplugged(CODES, CODE_FRAMES), sink)
        assert got == list(range(20))

    async def _opened(info: StreamInfo) -> None:
        return None

    anyio.run(main)


@contextmanager
def breaking_off(data: bytes, at: int) -> Iterator[str]:
    """An address whose server promises `data`, and closes the connection after `at` bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "audio/wav")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:at])

        def log_message(self, *arguments: object) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/talk.wav"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_download_that_breaks_off_is_encoded_up_to_there(tmp_path: Path) -> None:
    whole = write_wav(tmp_path / "whole.wav", noise(16_000 * 6), 16_000)
    half = write_wav(tmp_path / "half.wav", noise(16_000 * 6)[:, :48_000], 16_000)
    assert streamenc("encode", half, tmp_path / "half.arrows", "-q").code == 0
    with breaking_off(whole.read_bytes(), 44 + 2 * 48_000) as url:
        done = streamenc("encode", url, tmp_path / "codes.arrows", "--stats", tmp_path / "s.json")
    _, wanted = read_file(str(tmp_path / "half.arrows"))
    _, frames = read_file(str(tmp_path / "codes.arrows"))
    together = [np.concatenate([f.data for f in each], axis=1) for each in (frames, wanted)]
    assert together[0].shape[1] == 150  # 3 s of 20 ms
    assert np.array_equal(*together)
    assert done.code == 1 and done.out == ""
    assert "output: not whole: node 'input' failed: MediaError" in done.error
    assert done.error.splitlines()[-1].startswith("streamenc: node 'input' failed: MediaError")
    stats = json.loads((tmp_path / "s.json").read_text())
    assert (stats["outcome"], stats["lost"]) == ("failed", 0)
    assert all("'input' failed" in node["broken"] for node in stats["nodes"])


@pytest.mark.parametrize("quiet", [True, False])
def test_half_a_recording_is_decoded_and_what_is_missing_told(
    tmp_path: Path, quiet: bool, caplog: pytest.LogCaptureFixture
) -> None:
    clip = write_wav(tmp_path / "clip.wav", noise(16_000), 16_000)
    whole, half = tmp_path / "whole.arrows", tmp_path / "half.arrows"
    # Batches of one frame each: of half a file, half of the frames are there.
    assert (
        streamenc("encode", clip, f"{whole}?flush_ms=0", "-m", "nano", "-q", "--hops", 1).code == 0
    )
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    done = streamenc("decode", half, tmp_path / "out.wav", "-m", "nano", *(["-q"] if quiet else []))
    assert done.code == 0
    # Once, below the report or in the log.
    assert (done.error.count("output: not whole: "), caplog.text.count(" output: not whole: ")) == (
        (0, 1) if quiet else (1, 0)
    )
    assert 0.2 < soundfile.info(tmp_path / "out.wav").duration < 0.8
