from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamenc.errors import MediaError, UsageError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.media.audiosource import MediaSource
from tests.support.gathered import check_gathered


def tone(rate: int, channels: int, seconds: float = 1.0) -> np.ndarray[Any, Any]:
    """(channels, samples), another pitch in each channel, whole multiples of 2^-15."""
    at = np.arange(round(rate * seconds)) / rate
    waves = [0.4 * np.sin(2 * np.pi * 220 * (c + 1) * at) for c in range(channels)]
    return (np.rint(np.stack(waves) * 2**15) / 2**15).astype(np.float32)


def make(
    path: Path,
    samples: np.ndarray[Any, Any],
    rate: int,
    codec: str,
    shift: Any = lambda index: 0,
    format: str | None = None,
    tracks: int = 1,
) -> Path:
    """Encodes `samples`; `shift(index)` seconds are added to the time of each packet."""
    with av.open(str(path), "w", format=format) as container:
        layout = f"{samples.shape[0]}c"
        streams = [container.add_stream(codec, rate=rate, layout=layout) for _ in range(tracks)]
        for stream in streams:
            packets = []
            for at in range(0, samples.shape[1], 960):
                piece = np.ascontiguousarray(samples[:, at : at + 960])
                frame = av.AudioFrame.from_ndarray(piece, "fltp", layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
                packets += stream.encode(frame)
            for index, packet in enumerate(packets + stream.encode(None)):
                ticks = round(shift(index) / packet.time_base)
                if ticks:
                    packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                container.mux(packet)
    return path


def play(address: str | Path, **options: Any) -> tuple[StreamInfo, list[Frame], MediaSource]:
    source = MediaSource(str(address), **options)
    try:
        info = source.open_blocking()
        frames = list(iter(source.read, None))
        if isinstance(address, Path) and options.keys() <= {"stream"}:
            check_gathered(address, frames, source)
        return info, frames, source
    finally:
        source.close_blocking()
        source.close_blocking()


def joined(frames: list[Frame]) -> np.ndarray[Any, Any]:
    return np.concatenate([frame.data for frame in frames], axis=1)


def on_one_timeline(frames: list[Frame]) -> bool:
    ends = [frame.pts + frame.duration for frame in frames]
    return (
        [frame.pts for frame in frames[1:]] == ends[:-1]
        and [frame.seq for frame in frames] == list(range(len(frames)))
        and all(frame.duration == frame.data.shape[1] > 0 for frame in frames)
        and not any(frame.discontinuity for frame in frames)
    )


@pytest.mark.parametrize(
    ("rate", "channels"), [(8000, 1), (22050, 1), (44100, 2), (48000, 6), (96000, 2)]
)
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.wav", "pcm_s16le"),
        ("a.wav", "pcm_s24le"),
        ("a.wav", "pcm_s32le"),
        ("a.wav", "pcm_f32le"),
        ("a.wav", "pcm_f64le"),
        ("a.flac", "flac"),
        ("a.mkv", "flac"),
    ],
)
def test_lossless_sound_of_any_rate_and_channels_is_exact(
    tmp_path: Path, name: str, codec: str, rate: int, channels: int
) -> None:
    samples = tone(rate, channels)
    info, frames, source = play(make(tmp_path / name, samples, rate, codec))
    assert info == StreamInfo(
        "audio", Fraction(1, rate), Fraction(rate), (channels, None), "float32"
    )
    assert on_one_timeline(frames)
    assert frames[0].pts == 0
    assert all(frame.data.flags.c_contiguous for frame in frames)
    np.testing.assert_array_equal(joined(frames), samples, strict=True)
    assert max(frame.duration for frame in frames) <= rate / 10
    assert source.duration_seconds == pytest.approx(1, abs=0.01)
    assert not source.live and source.lost == 0


def test_eight_bits_are_centred(tmp_path: Path) -> None:
    samples = np.rint(tone(8000, 1) * 128) / 128
    _, frames, _ = play(make(tmp_path / "a.wav", samples.astype(np.float32), 8000, "pcm_u8"))
    np.testing.assert_array_equal(joined(frames), samples)


def test_a_type_that_numpy_does_not_know_is_converted(tmp_path: Path) -> None:
    samples = tone(8000, 1)
    _, frames, _ = play(make(tmp_path / "a.mkv", samples, 8000, "pcm_s64le", format="nut"))
    assert on_one_timeline(frames)
    np.testing.assert_allclose(joined(frames), samples, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.mkv", "aac", 44100),
        ("a.mkv", "libmp3lame", 44100),
        ("a.webm", "libopus", 48000),
        ("a.ogg", "libopus", 48000),
        ("a.mp4", "aac", 44100),
        ("a.ts", "aac", 44100),
        ("a.flv", "libmp3lame", 44100),
        ("a.mp3", "libmp3lame", 44100),
    ],
)
def test_rounded_timestamps_make_no_gaps(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    samples = tone(rate, 2, seconds=5)
    info, frames, _ = play(make(tmp_path / name, samples, rate, codec))
    assert info.rate == rate
    assert on_one_timeline(frames)
    assert sum(frame.duration for frame in frames) == pytest.approx(5 * rate, abs=3 * 1152)


def test_a_hole_in_a_file_is_flagged(tmp_path: Path) -> None:
    path = make(
        tmp_path / "a.mkv",
        tone(48000, 1, 3),
        48000,
        "libopus",
        shift=lambda index: 2.5 if index >= 75 else 0,
    )
    _, frames, source = play(path)
    (index,) = [i for i, frame in enumerate(frames) if frame.discontinuity]
    before, after = frames[:index], frames[index:]
    assert on_one_timeline(before)
    unflagged = [frame.with_(discontinuity=False, seq=frame.seq - index) for frame in after]
    assert on_one_timeline(unflagged)
    jump = after[0].pts - before[-1].pts - before[-1].duration
    assert jump == pytest.approx(2.5 * 48000, abs=96)  # two ticks of the container
    assert source.lost == 0


@pytest.mark.parametrize("starts", [(0, 60), (60, 0), (0, 36000, 1), (0, 1, 2)], ids=str)
def test_pieces_of_a_broadcast_keep_their_times(tmp_path: Path, starts: tuple[int, ...]) -> None:
    parts = [
        make(tmp_path / f"{start}.ts", tone(48000, 1), 48000, "aac", lambda _, s=start: s)
        for start in starts
    ]
    path = tmp_path / "all.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    _, frames, _ = play(path)
    assert sum(frame.duration for frame in frames) == pytest.approx(
        48000 * len(starts), abs=2048 * len(starts)
    )
    flagged = [frame for frame in frames if frame.discontinuity]
    for frame, start in zip(flagged, starts[1:], strict=True):
        moved_seconds = (frame.pts - frames[0].pts) / 48000
        assert moved_seconds == pytest.approx(start - starts[0], abs=0.05)


def test_damage_in_the_middle_is_skipped_counted_and_flagged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    samples = tone(48000, 1, 4)
    path = make(tmp_path / "a.mkv", samples, 48000, "flac")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40] = bytes(40)
    path.write_bytes(raw)
    _, frames, source = play(path)
    assert source.lost >= 1
    assert sum(frame.discontinuity for frame in frames) >= 1
    assert "skipping damaged audio" in caplog.text
    assert [remark.split()[0] for remark in source.remarks] == [str(source.lost)]
    assert "left out: damaged" in source.remarks[0]
    # What is whole is where it belongs.
    exact = sum(
        frame.duration
        for frame in frames
        if np.array_equal(frame.data, samples[:, frame.pts : frame.pts + frame.duration])
    )
    assert exact >= 4 * 48000 - 3 * 4608


def test_a_format_that_changes_is_converted_to_the_first(tmp_path: Path) -> None:
    first = make(tmp_path / "a.aac", tone(44100, 2, 6), 44100, "aac", format="adts")
    second = make(tmp_path / "b.aac", tone(22050, 1, 2), 22050, "aac", format="adts")
    path = tmp_path / "c.aac"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    info, frames, _ = play(path)
    assert info.rate == 44100 and info.shape == (2, None)
    assert all(frame.data.shape[0] == 2 for frame in frames)
    assert sum(frame.duration for frame in frames) == pytest.approx(8 * 44100, abs=6 * 1024)
    assert any(frame.discontinuity for frame in frames)
    end = joined(frames)[:, -44100:]  # of the second: one pitch in both channels
    np.testing.assert_allclose(end[0], end[1], atol=1e-6)
    assert np.abs(end[0]).max() > 0.2


def test_one_of_several_streams(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", tone(48000, 1), 48000, "flac", tracks=2)
    _, frames, _ = play(path, stream="1")
    np.testing.assert_array_equal(joined(frames), tone(48000, 1))
    with pytest.raises(MediaError, match="no audio stream 2; it holds 2 audio streams"):
        play(path, stream=2)


def video_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=32, height=32, pix_fmt="yuv420p")
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), "rgb24")
        container.mux(stream.encode(frame) + stream.encode(None))


def truncated_mp4(path: Path) -> None:
    make(path, tone(44100, 2), 44100, "aac", format="mp4")
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("a.wav", lambda path: None, "there is no file"),
        ("a.wav", lambda path: path.mkdir(), "is a folder"),
        ("a.wav", lambda path: path.write_bytes(b""), r"empty \(0 bytes\)"),
        ("a.wav", lambda path: path.write_text("just a note, 100 % text\n" * 9), "text, not audio"),
        ("a.wav", lambda path: path.write_bytes(bytes(range(256)) * 20), "cannot read"),
        ("a.mp4", truncated_mp4, "no index"),
        ("a.mp4", video_only, "0 audio streams"),
    ],
)
def test_what_is_no_sound_is_said_plainly(
    tmp_path: Path, name: str, write: Any, message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(MediaError, match=message):
        play(tmp_path / name)


def test_a_name_that_is_nearly_right_is_suggested(tmp_path: Path) -> None:
    make(tmp_path / "interview.wav", tone(8000, 1), 8000, "pcm_s16le")
    with pytest.raises(MediaError, match=r"did you mean '.*interview\.wav'"):
        play(tmp_path / "intreview.wav")


@pytest.mark.parametrize("name", ["concat:a.wav", "pipe:0", "a?b#c %20.wav"])
def test_any_file_name_is_a_file_name(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "a.wav", tone(8000, 1), 8000, "pcm_s16le").rename(tmp_path / name)
    _, frames, _ = play(path)
    assert len(joined(frames)[0]) == 8000
    _, frames, _ = play(f"file:{path}")
    assert len(joined(frames)[0]) == 8000


def test_a_truncated_recording_gives_what_is_there(tmp_path: Path) -> None:
    path = make(tmp_path / "a.wav", tone(8000, 1), 8000, "pcm_s16le")
    path.write_bytes(path.read_bytes()[:9001])
    _, frames, _ = play(path)
    got = joined(frames)
    sound_at = path.read_bytes().index(b"data") + 8
    assert got.shape[1] == (9001 - sound_at) // 2
    np.testing.assert_array_equal(got, tone(8000, 1)[:, : got.shape[1]])


def test_close_without_open_and_options() -> None:
    source = MediaSource("a.wav")
    source.close_blocking()
    assert source.read() is None
    for option, value in (("stream", "first"), ("open_timeout_s", 0), ("read_timeout_s", "x")):
        with pytest.raises(UsageError, match=option):
            MediaSource("a.wav", **{option: value})


@pytest.mark.parametrize(
    ("address", "live"),
    [
        ("a.wav", False),
        ("http://h/a.wav", None),
        ("rtsp://h/a", True),
        ("UDP://h:1", True),
        ("srt://h:1", True),
        ("rtmp://h/a", True),
    ],
)
def test_what_does_not_wait_is_live(address: str, live: bool | None) -> None:
    assert MediaSource(address).live is live


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def http_server(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_file_behind_a_web_server(tmp_path: Path) -> None:
    make(tmp_path / "a.flac", tone(48000, 2, 5), 48000, "flac")
    with http_server(tmp_path) as address:
        _, frames, source = play(f"{address}/a.flac")
        assert source.read() is None
        with pytest.raises(MediaError, match="404"):
            play(f"{address}/b.flac")
    np.testing.assert_array_equal(joined(frames), tone(48000, 2, 5))


def test_nobody_listening_is_an_error_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(MediaError, match="refused"):
            play(f"http://127.0.0.1:{free.getsockname()[1]}/a.wav")


@contextmanager
def stalling_server(answer: bytes) -> Iterator[str]:
    """Sends `answer` to whoever asks, and then nothing."""
    done = threading.Event()

    def serve() -> None:
        peers = []
        while not done.is_set():
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                continue
            peer.recv(4096)
            peer.sendall(answer)
            peers.append(peer)
        for peer in peers:
            peer.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.wav"
        finally:
            done.set()
            thread.join()


def test_a_server_that_never_answers_times_out() -> None:
    with stalling_server(b"") as address:
        started = time.monotonic()
        with pytest.raises(MediaError, match="sent nothing"):
            play(address, open_timeout_s=0.5)
        assert time.monotonic() - started < 20


@contextmanager
def stalled(tmp_path: Path, **options: Any) -> Iterator[tuple[MediaSource, int]]:
    """A source that has delivered all that came, and waits; and how much that was."""
    path = make(tmp_path / "a.wav", tone(8000, 1, 60), 8000, "pcm_s16le")
    head = b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: 960044\r\n\r\n"
    with stalling_server(head + path.read_bytes()[:200_000]) as address:
        source = MediaSource(address, **options)
        source.open_blocking()
        assert not source.live
        first = source.read()
        assert first is not None
        try:
            yield source, first.duration
        finally:
            source.close_blocking()


def test_a_server_that_stops_sending_times_out(tmp_path: Path) -> None:
    with stalled(tmp_path, read_timeout_s="0.5") as (source, samples):
        with pytest.raises(MediaError, match="read_timeout_s"):
            while (frame := source.read()) is not None:
                samples += frame.duration
        assert samples > 50_000  # what came is delivered before the error is
        assert source.read() is None


def test_stop_ends_a_read_that_waits_for_the_network(tmp_path: Path) -> None:
    with stalled(tmp_path, read_timeout_s="3") as (source, _):
        ended = threading.Event()

        def drain() -> None:
            while source.read() is not None:
                pass
            ended.set()

        thread = threading.Thread(target=drain)
        thread.start()
        time.sleep(0.5)
        assert not ended.is_set()
        source.stop()
        assert ended.wait(2)
        thread.join()


def free_udp_port() -> int:
    """Below those that systems give to sockets that name none: nobody takes it in between."""
    for port in random.sample(range(20_000, 30_000), 100):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free, suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port
    pytest.fail("no UDP port is free")


def test_a_live_stream_over_udp(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ts", tone(44100, 1, 8), 44100, "aac", format="mpegts")
    port, ended = free_udp_port(), threading.Event()

    def send() -> None:
        raw = path.read_bytes()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not ended.is_set():
                for at in range(0, len(raw), 7 * 188):
                    sender.sendto(raw[at : at + 7 * 188], ("127.0.0.1", port))
                    if ended.wait(0.002):
                        return

    thread = threading.Thread(target=send)
    thread.start()
    source = MediaSource(f"udp://127.0.0.1:{port}", open_timeout_s=20, read_timeout_s=2)
    try:
        info = source.open_blocking()
        assert info.rate == 44100 and source.live
        frames = [source.read() for _ in range(100)]
        assert all(frame is not None and frame.data.shape[0] == 1 for frame in frames)
    finally:
        ended.set()
        source.close_blocking()
        thread.join()


def test_a_source_that_was_left_ends_its_thread(tmp_path: Path) -> None:
    make(tmp_path / "a.wav", tone(48000, 1, 60), 48000, "pcm_s16le")
    with http_server(tmp_path) as address:
        before = {*threading.enumerate()}
        source = MediaSource(f"{address}/a.wav")
        source.open_blocking()
        assert source.read() is not None
        source.close_blocking()
        for thread in {*threading.enumerate()} - before:
            if thread.name == "streamenc-pump":
                thread.join(10)
                assert not thread.is_alive()


def test_an_rtsp_address_without_a_server_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(MediaError, match="cannot read"):
            play(f"rtsp://127.0.0.1:{free.getsockname()[1]}/live", open_timeout_s=5)
