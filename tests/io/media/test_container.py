from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import av.error
import pytest

from streamenc.errors import MediaError, UsageError
from streamenc.io.media.container import Address, pick_stream


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
        ("http://h/a.mp4", True, False),
        ("tcp://h:1", True, False),
        ("RTSP://h/a", True, True),
        ("srt://h:1?mode=listener", True, True),
        ("udp://h:1", True, True),
    ],
)
def test_what_is_remote_and_what_is_live(name: str, remote: bool, live: bool) -> None:
    made = address(name)
    assert (made.remote, made.live, made.reconnect) == (remote, live, live)
    assert made.connectionless is name.startswith("udp")
    assert (made.open_timeout_seconds, made.read_timeout_seconds) == (2, 3)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("open_timeout_s", 0),
        ("read_timeout_s", "soon"),
        ("reconnect", "maybe"),
        ("reconnect_max_s", 0),
        ("reconnect_for_s", -1),
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


def stream(kind: str, codec: object = "codec", image: bool = False) -> Any:
    return SimpleNamespace(type=kind, codec_context=codec, disposition=Disposition(image))


class Streams(list[Any]):
    @property
    def video(self) -> list[Any]:
        return [s for s in self if s.type == "video"]


def test_streams_are_picked_by_kind_and_number() -> None:
    held = Streams(
        [stream("video", image=True), stream("audio"), stream("video"), stream("video", None)]
    )
    container = SimpleNamespace(streams=held)
    assert pick_stream(container, "video", 0, "a") is held[2]
    assert pick_stream(container, "audio", 0, "a") is held[1]
    with pytest.raises(MediaError, match="no decoder for its video"):
        pick_stream(container, "video", 1, "a")
    with pytest.raises(MediaError, match=r"2 video streams \(image, audio, video, video\)"):
        pick_stream(container, "video", 2, "a")
    with pytest.raises(MediaError, match=r"0 audio streams \(nothing\)"):
        pick_stream(SimpleNamespace(streams=Streams()), "audio", 0, "a")


def test_a_protocol_that_is_not_built_in_is_named() -> None:
    said = str(address("srt://h:1").failure(av.error.ProtocolNotFoundError(1, "Protocol")))
    assert "this build of PyAV has no srt" in said
