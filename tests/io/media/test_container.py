from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import av.error
import pytest

from streamenc.errors import MediaError, UsageError
from streamenc.io.media.container import Address, Nature, pick_streams


def address(name: str, **options: Any) -> Address:
    defaults: dict[str, Any] = {
        "open_timeout_s": "2", "read_timeout_s": 3, "reconnect": None, "reconnect_max_s": 10,
        "reconnect_for_s": "60",
    }  # fmt: skip
    return Address.checked(name, **{**defaults, **options})


@pytest.mark.parametrize(
    ("name", "remote", "live"),
    [
        ("a.mp4", False, False),
        ("file:///a.mp4", False, False),
        ("file:a.mp4", False, False),
        ("concat:a.mp4", False, False),
        ("http://h/a.mp4", True, None),
        ("https://h/a.mp4", True, None),
        ("tcp://h:1", True, False),
        ("RTSP://h/a", True, True),
        ("srt://h:1?mode=listener", True, True),
        ("udp://h:1", True, True),
    ],
)
def test_what_is_remote_and_what_is_known_to_be_live(
    name: str, remote: bool, live: bool | None
) -> None:
    made = address(name)
    assert (made.remote, made.live, made.reconnect) == (remote, live, None)
    assert made.connectionless is name.startswith("udp")
    assert (made.open_timeout_seconds, made.read_timeout_seconds) == (2, 3)


def answer(format: str, size: int = -38, seconds: float | None = None) -> Any:
    """What an address turns out to hold; -38 is what FFmpeg says of a size that is not known."""
    duration = None if seconds is None else round(seconds * 1e6)
    return SimpleNamespace(format=SimpleNamespace(name=format), size=size, duration=duration)


@pytest.mark.parametrize(
    ("name", "holds", "nature"),
    [
        ("a.mp4", answer("mov,mp4", 100, 1), Nature()),
        ("http://h/a.mp4", answer("mov,mp4", 100, 1), Nature()),
        ("http://h/a.ts", answer("mpegts", 100), Nature()),
        ("http://h/a.mjpeg", answer("mjpeg", 100), Nature()),
        ("http://h/a.flac", answer("flac", seconds=3), Nature()),
        ("http://h/a.jpg", answer("jpeg_pipe"), Nature()),
        ("http://h/radio", answer("mp3"), Nature(live=True)),
        ("https://h/camera", answer("mpjpeg"), Nature(live=True, endless=True, timeless=True)),
        ("http://h/camera", answer("h264"), Nature(live=True, timeless=True)),
        ("http://h/list.m3u8", answer("hls", 900), Nature(live=True, endless=True)),
        ("http://h/list.m3u8", answer("hls", 900, 60), Nature()),
        ("tcp://h:1", answer("mpegts"), Nature()),
        ("rtsp://h/a", answer("rtsp", -22), Nature(live=True, endless=True)),
        ("rtmp://h/film", answer("flv", seconds=60), Nature(live=True)),
        ("udp://h:1", answer("h264"), Nature(live=True, endless=True, timeless=True)),
    ],
)
def test_what_it_is_is_known_once_it_is_open(name: str, holds: Any, nature: Nature) -> None:
    assert address(name).nature(holds) == nature


def test_the_user_may_know_better() -> None:
    assert not address("http://h/radio", live="no").nature(answer("mp3")).live
    assert address("http://h/a.ts", live=True).nature(answer("mpegts", 100)).live
    with pytest.raises(UsageError, match="'live' is for network addresses; 'a.mp4' is a file"):
        address("a.mp4", live="yes")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("open_timeout_s", 0),
        ("read_timeout_s", "soon"),
        ("reconnect", "maybe"),
        ("reconnect_max_s", 0),
        ("reconnect_for_s", -1),
        ("live", "maybe"),
        ("rtsp_transport", "pigeon"),
        ("insecure", "maybe"),
    ],
)
def test_options_out_of_range(option: str, value: object) -> None:
    with pytest.raises(UsageError, match=option):
        address("rtsp://h/a", **{option: value})


def test_a_file_is_not_connected_again() -> None:
    assert not address("a.mp4", reconnect="no").reconnect
    with pytest.raises(UsageError, match="'reconnect' is for network addresses; 'a.mp4' is a file"):
        address("a.mp4", reconnect=True)


@pytest.mark.parametrize(("opening", "option"), [(True, "open_timeout"), (False, "read_timeout")])
def test_a_timeout_names_its_option(opening: bool, option: str) -> None:
    said = str(address("rtsp://h/a").failure(av.error.ExitError(1, "exit"), opening))
    assert f"sent nothing for up to {2 if opening else 3} s" in said and f"raise {option}_s" in said


class Disposition(int):
    attached_pic = 1


def stream(kind: str, image: bool = False, decoder: bool = True, **more: Any) -> Any:
    context = SimpleNamespace(width=more.get("width", 64), height=48) if decoder else None
    rate = more.get("variant_bitrate")
    return SimpleNamespace(
        type=kind,
        codec_context=context,
        disposition=Disposition(image),
        metadata={} if rate is None else {"variant_bitrate": str(rate)},
    )


class Streams(list[Any]):
    """The last of a kind is the best one, but of related ones the first is."""

    @property
    def video(self) -> list[Any]:
        return [s for s in self if s.type == "video"]

    def best(self, kind: str, related: Any) -> Any:
        return [s for s in self if s.type == kind][0 if related else -1]


def pick(held: list[Any], *wanted: tuple[str, int | None]) -> list[Any]:
    return pick_streams(SimpleNamespace(streams=Streams(held)), wanted, "a")


def test_streams_are_picked_by_kind_and_number() -> None:
    unknown = stream("video", decoder=False)
    held = [stream("video", image=True), stream("audio"), stream("video"), unknown]
    assert pick(held, ("video", 0)) == [held[2]]
    assert pick(held, ("audio", 0)) == [held[1]]
    with pytest.raises(MediaError, match="no decoder for its video"):
        pick(held, ("video", 1))
    with pytest.raises(MediaError, match=r"2 video streams \(image, audio, video, video\)"):
        pick(held, ("video", 2))
    with pytest.raises(MediaError, match=r"0 audio streams \(nothing\)"):
        pick([], ("audio", None))


def test_the_best_stream_is_the_default() -> None:
    sounds, images = [stream("audio"), stream("audio")], [stream("video"), stream("video")]
    held = [*sounds, *images]
    assert pick(held, ("audio", None)) == [sounds[1]]
    assert pick(held, ("audio", None), ("video", None)) == [sounds[0], images[1]]
    assert pick(held, ("audio", 1), ("video", 0)) == [sounds[1], images[0]]
    cover = stream("video", image=True)
    assert pick([*held, cover], ("video", None)) == [images[0]]
    assert pick([images[0], stream("video", decoder=False)], ("video", None)) == [images[0]]


def test_of_variants_it_is_the_largest() -> None:
    made = [
        stream("video", width=width, variant_bitrate=rate)
        for width, rate in ((320, 9000), (640, 400), (640, 800), (64, 10))
    ]
    assert pick(made, ("video", None)) == [made[2]]


def test_a_protocol_that_is_not_built_in_is_named() -> None:
    said = str(address("srt://h:1").failure(av.error.ProtocolNotFoundError(1, "Protocol")))
    assert "this build of PyAV has no srt" in said
