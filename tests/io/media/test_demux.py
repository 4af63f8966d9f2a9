"""The order of decoded frames, and what becomes of what cannot be read or decoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import av.error
import pytest
from av.stream import Discard

from streamenc.errors import MediaError
from streamenc.io.media import demux
from streamenc.io.media.demux import Demuxer

AUDIO = SimpleNamespace(type="audio", index=1, discard=None)
VIDEO = SimpleNamespace(
    type="video",
    index=4,
    discard=None,
    codec_context=SimpleNamespace(name="vp9", options={}, extradata=None),
)
OTHER = SimpleNamespace(type="video", index=5, discard=None)
BAD = av.error.InvalidDataError(1, "invalid data")


class Container:
    """Reads a script of (stream, what comes of decoding); an exception instead of it is a read
    that fails, after which reading can go on."""

    def __init__(self, script: list[Any]) -> None:
        self.script = iter(script)
        self.streams = [AUDIO, VIDEO, OTHER]
        self.name, self.format = "a", SimpleNamespace(name="matroska")
        self.closed = 0

    def demux(self, streams: list[Any]) -> Iterator[Any]:
        for item in self.script:
            if isinstance(item, Exception):
                raise item
            stream, outcome = item
            made = SimpleNamespace(
                stream=stream, size=100, pts=None, pos=0, is_corrupt=False, is_keyframe=False
            )
            made.decode = lambda outcome=outcome: decode(outcome)
            yield made

    def close(self) -> None:
        self.closed += 1


def decode(outcome: Any) -> list[Any]:
    if isinstance(outcome, Exception):
        raise outcome
    return [frame(name) for name in outcome]


def frame(name: str) -> Any:
    """A name in capitals is damaged."""
    return SimpleNamespace(
        name=name, is_corrupt=name.isupper(), key_frame=True, opaque=None, pts=None
    )


def made(script: list[Any], *streams: Any, fatal: Any = None) -> tuple[Demuxer, list[None]]:
    losses: list[None] = []
    container, halt = Container(script), threading.Event()
    return Demuxer("a", container, streams, lambda: losses.append(None), halt, fatal), losses


def names(demuxer: Demuxer) -> str:
    return "".join(f"{number}{frame.name}" for number, frame in demuxer.frames())


def test_nothing_is_lost_while_the_first_frame_of_another_is_awaited() -> None:
    script = [(VIDEO, "a"), (VIDEO, "b"), (VIDEO, ""), (VIDEO, "c"), (AUDIO, "xy"), (VIDEO, "d")]
    demuxer, losses = made(script, AUDIO, VIDEO)
    assert [frame.name for frame in demuxer.first_frames()] == ["x", "a"]
    assert names(demuxer) == "1a0x0y1b1c1d"
    assert not losses


def test_a_stream_of_which_nothing_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demux, "MAX_HELD_PACKETS", 5)
    for script in ([(VIDEO, "a")] * 3, [(VIDEO, "a")] * 100, [(AUDIO, BAD), (VIDEO, "a")]):
        demuxer, _ = made(script, AUDIO, VIDEO)
        with pytest.raises(MediaError, match="no audio in it can be decoded"):
            demuxer.first_frames()


def test_what_cannot_be_decoded_is_skipped_on_its_stream_alone() -> None:
    script = [(VIDEO, "a"), (AUDIO, "x"), (VIDEO, BAD), (VIDEO, "bC"), (AUDIO, "y")]
    demuxer, losses = made(script, AUDIO, VIDEO)
    demuxer.first_frames()
    assert names(demuxer) == "1a0x1b0y"
    assert len(losses) == 2
    assert demuxer.broken == [False, True]


def test_damaged_sound_is_kept_counted_and_flagged() -> None:
    demuxer, losses = made([(AUDIO, "x"), (AUDIO, "Y")], AUDIO)
    demuxer.first_frames()
    assert names(demuxer) == "0x0Y" and len(losses) == 1 and demuxer.broken == [True]


def test_what_nobody_wants_is_not_fetched() -> None:
    made([], AUDIO)
    assert (VIDEO.discard, OTHER.discard) == (Discard.all, Discard.all)


def test_a_read_that_fails_is_skipped_in_a_file_and_fatal_elsewhere() -> None:
    script = [(VIDEO, "a"), BAD, (VIDEO, "b")]
    demuxer, losses = made(script, VIDEO)
    demuxer.first_frames()
    assert names(demuxer) == "0a0b" and len(losses) == 1 and demuxer.broken == [True]
    demuxer, losses = made(script, VIDEO, fatal=lambda error: MediaError(f"gone: {error.strerror}"))
    demuxer.first_frames()
    with pytest.raises(MediaError, match="gone: invalid data"):
        names(demuxer)
    assert not losses


def test_a_device_that_has_nothing_yet_is_asked_again() -> None:
    nothing = av.error.BlockingIOError(11, "nothing yet")
    script = [nothing, (VIDEO, "a"), nothing, nothing, (VIDEO, "b"), nothing]
    demuxer, losses = made(script, VIDEO, fatal=lambda error: MediaError("gone"))
    demuxer.first_frames()
    assert names(demuxer) == "0a0b" and not losses


def test_halt_ends_asking() -> None:
    class Silent(Container):
        def demux(self, streams: list[Any]) -> Iterator[Any]:
            raise av.error.BlockingIOError(11, "nothing yet")

    halt = threading.Event()
    halt.set()
    demuxer = Demuxer("a", Silent([]), [VIDEO], lambda: None, halt, None)
    assert names(demuxer) == ""


def test_nothing_but_errors_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demux, "MAX_ERRORS_IN_A_ROW", 10)
    demuxer, losses = made([(VIDEO, "a"), *[(VIDEO, BAD)] * 50], VIDEO)
    demuxer.first_frames()
    with pytest.raises(MediaError, match="10 packets in a row cannot be decoded"):
        names(demuxer)
    demuxer, losses = made([(VIDEO, "a"), *[(VIDEO, BAD)] * 9, (VIDEO, "b")] * 3, VIDEO)
    demuxer.first_frames()
    assert names(demuxer) == "0a0b" * 3 and len(losses) == 27


def test_the_end_of_one_stream_is_not_the_end() -> None:
    end = av.error.EOFError(1, "end")
    demuxer, losses = made([(VIDEO, "a"), (AUDIO, "x"), (VIDEO, end), (AUDIO, "y")], AUDIO, VIDEO)
    demuxer.first_frames()
    assert names(demuxer) == "1a0x0y" and not losses


def test_close_twice() -> None:
    demuxer, _ = made([], VIDEO)
    container = demuxer.container
    demuxer.close()
    demuxer.close()
    assert container.closed == 1
