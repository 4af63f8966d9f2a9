"""Addresses of the file system: nothing that is there is replaced by a socket."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

import anyio
import pytest

from streamenc.errors import TransportError
from streamenc.io.network.peers.socketfile import SocketFile
from streamenc.io.network.zeromq import ZmqSink
from tests.io.network.test_zeromq import CODES, opened, run


def make(kind: str, path: Path) -> None:
    if kind == "file":
        path.write_text("my thesis")
    elif kind == "link to a file":
        (path.parent / "thesis").write_text("my thesis")
        path.symlink_to(path.parent / "thesis")
    elif kind == "link to nothing":
        path.symlink_to(path.parent / "nothing")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("mode", ["pub", "credit"])
@pytest.mark.parametrize("kind", ["file", "link to a file", "link to nothing", "folder", "pipe"])
def test_what_is_there_stays(kind: str, mode: str, tmp_path: Path) -> None:
    path = tmp_path / "here"
    make(kind, path)
    before = os.lstat(path)

    async def main() -> None:
        for bind in (True, False):
            sink = ZmqSink(f"zmq+ipc://{path}", mode, bind=bind)
            async with opened(sink):
                with pytest.raises(TransportError, match="is there and is no socket"):
                    await sink.open(CODES)

    run(main)
    after = os.lstat(path)
    assert (after.st_ino, after.st_mode, after.st_size) == (
        before.st_ino, before.st_mode, before.st_size
    )  # fmt: skip


def test_a_socket_is_for_its_owner_alone_and_goes_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "stream"

    async def main() -> None:
        usual = os.umask(0)
        try:
            sink = ZmqSink(f"zmq+ipc://{path}")
            async with opened(sink):
                await sink.open(CODES)
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        finally:
            os.umask(usual)

    run(main)
    assert not path.exists()


def test_one_that_was_left_over_is_bound_again(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    async def main() -> None:
        sink = ZmqSink(f"zmq+ipc://{path}")
        async with opened(sink):
            await sink.open(CODES)
            assert sink.endpoint == f"zmq+ipc://{path}"
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(path))
                await anyio.sleep(0.1)

    run(main)


def test_of_many_that_start_at_once_one_gets_the_path(tmp_path: Path) -> None:
    path = str(tmp_path / "stream")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    got: list[SocketFile] = []
    refused: list[TransportError] = []
    start = threading.Barrier(8)

    def begin() -> None:
        start.wait()
        try:
            got.append(SocketFile("zmq+ipc:", path))
        except TransportError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 7
    assert all("another path" in str(error) for error in refused)
    os.close(got[0].fd)
    got[0].remove()
    assert not os.path.lexists(path)


def test_a_file_that_is_there_by_now_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    bound = SocketFile("zmq+ipc:", str(path))
    os.close(bound.fd)
    path.unlink()
    path.write_text("my thesis")
    bound.remove()
    assert path.read_text() == "my thesis"


@pytest.mark.parametrize("path", ["/no/such/folder/stream", "/tmp/" + "x" * 200, "/tmp/a\0b"])
def test_paths_that_cannot_be_bound(path: str) -> None:
    with pytest.raises(TransportError, match=r"cannot bind .*108 bytes"):
        SocketFile("zmq+ipc:", path)
