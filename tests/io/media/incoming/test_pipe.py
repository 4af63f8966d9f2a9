"""A pipe that can be looked at: nothing is lost by it, and nothing waits once it is stopped."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from streamenc.errors import MediaError
from streamenc.io.media.incoming.pipe import MAX_AHEAD_BYTES, Pipe, is_pipe
from tests.support.piped import fifo, standard_input


def opened(halt: threading.Event | None = None) -> Pipe:
    return Pipe("-", halt or threading.Event())


def rest_of(pipe: Pipe) -> bytes:
    return b"".join(iter(pipe.read, b""))


def test_what_was_looked_at_comes_again() -> None:
    data = bytes(range(256)) * 400
    with standard_input(data[:5], data[5:9], data[9:], pause_seconds=0.02):
        pipe = opened()
        head = pipe.look()
        assert len(head) >= 16 and data.startswith(head)
        assert data.startswith(pipe.peek(1000)) and len(pipe.peek(1000)) >= 1000
        assert pipe.peek_at(600, 10) == data[600:610]
        assert pipe.head == data[:512]
        assert pipe.read(3) == data[:3]
        pipe.skip(7)
        assert rest_of(pipe) == data[10:]
        assert pipe.ended and pipe.read() == b""
        pipe.close()
        pipe.close()


def test_a_look_waits_for_the_first_byte_and_then_half_a_second() -> None:
    with standard_input(b"\xff\xfb", hold=True) as writer:
        pipe = opened()
        began = time.monotonic()
        assert pipe.look() == b"\xff\xfb"
        assert 0.4 < time.monotonic() - began < 3
        os.close(writer)
        pipe.close()


def test_the_end_of_a_short_pipe_ends_a_look() -> None:
    with standard_input(b"abc"):
        pipe = opened()
        began = time.monotonic()
        assert pipe.look() == b"abc"
        assert time.monotonic() - began < 0.4
        assert pipe.ended
        pipe.close()


@pytest.mark.parametrize("call", [Pipe.look, Pipe.read])
def test_a_stop_ends_every_wait(call) -> None:
    halt = threading.Event()
    with standard_input(hold=True) as writer:
        pipe = opened(halt)
        threading.Timer(0.2, halt.set).start()
        began = time.monotonic()
        assert call(pipe) == b""
        assert time.monotonic() - began < 0.5
        os.close(writer)
        pipe.close()


def test_it_does_not_look_further_than_a_mebibyte() -> None:
    with standard_input(bytes(MAX_AHEAD_BYTES + 100_000)):
        pipe = opened()
        assert pipe.peek_at(MAX_AHEAD_BYTES - 5, 100) == bytes(5)
        assert pipe.peek_at(2 * MAX_AHEAD_BYTES, 100) == b""
        assert len(rest_of(pipe)) == MAX_AHEAD_BYTES + 100_000
        pipe.close()


def test_a_file_on_standard_input_can_be_sought_in(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"header" + bytes(range(100)))
    with path.open("rb", buffering=0) as file, pytest.MonkeyPatch.context() as patch:
        file.seek(6)  # somebody read that before
        patch.setattr("sys.stdin", file)
        pipe = opened()
        assert pipe.regular and pipe.seekable()
        assert pipe.peek(4)[:4] == bytes(range(4))
        assert (pipe.tell(), pipe.seek(50), pipe.read(3)) == (0, 50, b"\x32\x33\x34")
        assert (pipe.seek(-1, os.SEEK_END), pipe.read()) == (99, b"\x63")
        pipe.seek(10)
        assert (pipe.seek(5, os.SEEK_CUR), pipe.read(1)) == (15, b"\x0f")
        pipe.seek(0)
        pipe.skip(20)
        assert (pipe.tell(), pipe.read(1)) == (0, b"\x14")
        pipe.close()


def test_what_is_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert is_pipe("-") and is_pipe(str(fifo(tmp_path / "fifo")))
    assert not any(map(is_pipe, (str(tmp_path / "file"), str(tmp_path / "none"), "a\0b")))


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for name, message in ((tmp_path, "folder"), (tmp_path / "no", "No such file")):
        with pytest.raises(MediaError, match=message):
            Pipe(str(name), threading.Event())
