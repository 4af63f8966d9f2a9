"""Whether a source is live is decided by what it is; then the newest counts, at its own time."""

from __future__ import annotations

import time
import wave
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from streamenc.errors import FitError, MediaError, TransportError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import Transform
from streamenc.io.media import containersource
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.containersource import ContainerSource
from streamenc.io.media.videosource import VideoSource
from streamenc.pipeline.builder import Pipeline
from tests.support import rtsp
from tests.support.clips import numbers, write_clip
from tests.support.web import camera, file_of, folder, jpegs, web

FPS = 10


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containersource, "FIRST_PAUSE_SECONDS", 0.1)


def rest(source: ContainerSource) -> list[Frame]:
    return list(iter(source.read, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [True, False], ids=["with lengths", "without"])
def test_images_of_a_web_camera_are_dated_when_they_arrive(length: bool) -> None:
    with web(camera(jpegs(16), FPS, length=length)) as server:
        source = VideoSource(server.address, reconnect="no")
        assert source.live is None
        info = source.open_blocking()
        frames = rest(source)
        source.close_blocking()
    assert source.live and "taken for live" in source.remarks[0]
    # Without lengths, an image is known to be whole once the next one begins.
    assert numbers(frames) == list(range(16 if length else 15))
    assert source.lost == (not length) and source.broken == ""
    assert not any(frame.discontinuity for frame in frames)
    seconds = [float(frame.pts * info.time_base) for frame in frames]
    # FFmpeg would say 0.6 s, by a rate that it makes up.
    assert seconds[-1] - seconds[0] == pytest.approx((len(frames) - 1) / FPS, abs=0.15)
    assert np.diff(seconds).min() > 0
    since = [(frame.arrived_ns - frames[0].arrived_ns) / 1e9 for frame in frames]
    assert seconds == pytest.approx(since, abs=1e-6)


def test_images_of_a_web_camera_do_not_grow_old() -> None:
    with web(camera(jpegs(40), 40)) as server:
        source = VideoSource(server.address, reconnect="no")
        source.open_blocking()
        ages, frames = [], []
        while (frame := source.read()) is not None:
            ages.append((source.clock.now_ns() - frame.arrived_ns) / 1e9)
            frames.append(frame)
            time.sleep(0.1)
        source.close_blocking()
    assert max(ages) < 0.5  # not 4 s x 3/4
    said = numbers(frames)
    assert len(said) < 20 and said == sorted({*said})
    assert source.lost == 40 - len(said)
    jumps = [index for index in range(1, len(said)) if said[index] != said[index - 1] + 1]
    assert jumps and [i for i, frame in enumerate(frames) if frame.discontinuity] == jumps


def test_a_web_camera_that_hangs_up_is_called_again() -> None:
    calls = []

    def once(path: str, send: Callable[[bytes], None]) -> None:
        calls.append(path)
        if len(calls) < 3:
            camera(jpegs(5), 50)(path, send)

    with web(once) as server:
        source = VideoSource(server.address, reconnect_for_s=0.3)
        info = source.open_blocking()
        frames: list[Frame] = []
        with pytest.raises(TransportError, match="could not be opened again"):
            while (frame := source.read()) is not None:
                frames.append(frame)
        source.close_blocking()
    assert numbers(frames) == [*range(5), *range(5)] and source.reconnects == 1
    assert [frame.discontinuity for frame in frames] == [n == 5 for n in range(10)]
    assert (
        np.diff([frame.pts for frame in frames]).min() > 0 and info.time_base.denominator == 10**6
    )


def sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes((8000 * np.sin(np.arange(48_000) / 9)).astype("<i2").tobytes())
    return path


def test_a_server_that_just_hangs_up_has_ended_in_order(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.ts", count=100).read_bytes()
    with web(lambda path, send: send(file_of(data, "video/mp2t", length=False))) as server:
        source = VideoSource(server.address)
        source.open_blocking()
        frames = rest(source)
        source.close_blocking()
    assert numbers(frames) == list(range(100)) and source.broken == "" and source.reconnects == 0
    assert source.live  # it says no length: a broadcast looks like this


def test_where_the_container_knows_better_a_server_that_hangs_up_is_told_of(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "a.mkv", count=100).read_bytes()
    for part, broken in ((1, False), (0.5, True)):
        cut = data[: round(part * len(data))]
        with web(lambda path, send, cut=cut: send(file_of(cut, length=False))) as server:
            source = VideoSource(server.address)
            source.open_blocking()
            frames = rest(source)
            source.close_blocking()
        assert not source.live and numbers(frames) == list(range(len(frames)))
        assert ("of the 4.0 s that its header promises" in source.broken) is broken
        assert (len(frames) == 100) is not broken


def test_a_download_that_breaks_off_fails_after_what_came(tmp_path: Path) -> None:
    data = sound(tmp_path / "a.wav").read_bytes()
    answer = file_of(data)[: len(data) // 2]
    with web(lambda path, send: send(answer)) as server:
        source = MediaSource(f"{server.address}/a.wav")
        source.open_blocking()
        assert source.live is False and source.duration_seconds == pytest.approx(3)
        heard = 0
        with pytest.raises(MediaError, match="cannot read"):
            while (frame := source.read()) is not None:
                heard += frame.duration
        source.close_blocking()
    assert 16_000 < heard < 24_000


def playlist(folder: Path, name: str, ended: bool, size: str) -> None:
    """Three segments of a second each, the images of which say their numbers."""
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1"]
    for number in range(3):
        path = folder / f"{name}{number}.ts"
        write_clip(path, count=25, size=size, times=lambda n, start=number: start + n / 25)
        lines += ["#EXTINF:1.0,", f"{name}{number}.ts"]
    lines += ["#EXT-X-ENDLIST"] * ended
    (folder / f"{name}.m3u8").write_text("\n".join(lines) + "\n")


def test_of_a_playlist_with_variants_only_the_best_is_fetched(tmp_path: Path) -> None:
    playlist(tmp_path, "low", True, "64x48")
    playlist(tmp_path, "high", True, "192x112")
    playlist(tmp_path, "middle", True, "96x64")
    variants = [("low", 1000, "64x48"), ("high", 9000, "192x112"), ("middle", 5000, "96x64")]
    lines = ["#EXTM3U"]
    for name, rate, size in variants:
        lines += [f"#EXT-X-STREAM-INF:BANDWIDTH={rate},RESOLUTION={size}", f"{name}.m3u8"]
    (tmp_path / "all.m3u8").write_text("\n".join(lines) + "\n")
    with web(folder(tmp_path)) as server:
        source = VideoSource(f"{server.address}/all.m3u8")
        info = source.open_blocking()
        frames = rest(source)
        source.close_blocking()
    assert info.shape == (3, None, 112, 192) and len(frames) == 75
    assert source.live is False and source.duration_seconds == pytest.approx(3, abs=0.1)
    assert {f"/high{n}.ts" for n in range(3)} <= {*server.paths}
    assert not {f"/{name}{n}.ts" for name in ("low", "middle") for n in (1, 2)} & {*server.paths}


def test_a_playlist_that_does_not_end_is_live(tmp_path: Path) -> None:
    playlist(tmp_path, "tv", False, "64x48")
    with web(folder(tmp_path)) as server:
        source = VideoSource(f"{server.address}/tv.m3u8", open_timeout_s=5)
        source.open_blocking()
        assert source.live and source.read() is not None
        source.close_blocking()


def test_of_several_streams_the_default_one_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("flac", rate=8000, layout="mono") for _ in range(2)]
        streams[0].disposition = 0
        streams[1].disposition = av.stream.Disposition.default
        for level, stream in enumerate(streams, 1):
            data = np.full((1, 8000), 1000 * level, np.int16)
            frame = av.AudioFrame.from_ndarray(data, "s16", "mono")
            frame.sample_rate, frame.pts = 8000, 0
            container.mux(stream.encode(frame) + stream.encode(None))
    for options, level in (({}, 2000), ({"stream": 0}, 1000), ({"stream": 1}, 2000)):
        source = MediaSource(str(path), **options)
        source.open_blocking()
        first = source.read()
        source.close_blocking()
        assert first is not None and np.all(first.data == np.float32(level / 32768))


@pytest.mark.parametrize(
    ("has_tcp", "wanted", "asked"),
    [
        (True, "", ["tcp"]),
        (False, "", ["tcp", "udp"]),
        (True, "udp", ["udp"]),
        (True, "tcp", ["tcp"]),
    ],
)
def test_rtsp_comes_by_tcp_unless_it_is_not_there_or_not_wanted(
    has_tcp: bool, wanted: str, asked: list[str]
) -> None:
    transports: list[str] = []
    with rtsp.camera(first=7, tcp=has_tcp, transports=transports) as address:
        source = VideoSource(address, open_timeout_s=20, rtsp_transport=wanted)
        source.open_blocking()
        frame = source.read()
        source.close_blocking()
    assert frame is not None and numbers([frame])[0] >= 7 and transports == asked


def test_rtsp_by_tcp_alone_is_refused_where_it_is_not_there() -> None:
    with rtsp.camera() as address, pytest.raises(MediaError, match="cannot read"):
        VideoSource(address, open_timeout_s=5, rtsp_transport="tcp").open_blocking()


class Slow(Transform):
    """Takes 40 ms for a frame."""

    blocking = True

    def open(self, info: StreamInfo) -> StreamInfo:
        return info

    def push(self, frame: Frame) -> tuple[Frame]:
        time.sleep(0.04)
        return (frame,)


def test_an_edge_for_what_is_live_waits_for_a_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", count=25, size="64x48")
    for answer, path, dropped in (
        (folder(tmp_path), "/a.mkv", False),
        (camera(jpegs(20), 50), "", True),
    ):
        with web(answer) as server, Pipeline() as pipeline:
            pipeline.source("camera", server.address + path, kind="video", reconnect="no")
            after = pipeline.graph.transform(
                "slow", Slow(), "camera", policy="latest", capacity=1, if_live=True
            )
            pipeline.sink("sink", "null:", after)
            report = pipeline.graph.run_blocking()
        edge = report.edges[0]
        assert edge.policy == ("latest" if dropped else "block")
        assert bool(edge.dropped) is dropped and (dropped or edge.received == 25)


def test_only_what_is_live_is_aligned(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mkv", count=25, size="64x48")
    for answer, path in ((folder(tmp_path), "/a.mkv"), (camera(jpegs(20), 25), "")):
        with web(answer) as server, Pipeline() as pipeline:
            address = server.address + path
            after = pipeline.source("c", address, kind="video", align=True, reconnect="no")
            pipeline.sink("sink", "null:", after)
            if path:
                with pytest.raises(FitError, match="align is for what comes when it happens"):
                    pipeline.graph.run_blocking()
            else:
                report = pipeline.graph.run_blocking()
                assert report.edges[-1].received == 20
