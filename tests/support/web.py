"""Web servers for tests: cameras, broadcasts, files of known and unknown length."""

from __future__ import annotations

import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from streamenc.io.media.pattern import PatternSource

Answer = Callable[[str, Callable[[bytes], None]], None]


@dataclass
class Requests:
    """What was asked for, in order; and until when the server is there."""

    address: str
    paths: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def web(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Requests]:
    """Calls `answer` with the path of each request, and a function that sends bytes; then hangs
    up. One thread for each."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    scheme = "http" if tls is None else "https"
    made = Requests(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}")
    threads: list[threading.Thread] = []

    def serve(peer: socket.socket) -> None:
        with suppress(OSError):
            peer.settimeout(5)
            with peer if tls is None else tls.wrap_socket(peer, server_side=True) as wire:
                words = wire.recv(8192).split(b" ")
                if len(words) > 1:  # or else the caller hung up
                    made.paths.append(words[1].decode())
                    answer(made.paths[-1], wire.sendall)

    def accept() -> None:
        with listener:
            while not made.over.is_set():
                with suppress(TimeoutError):
                    threads.append(threading.Thread(target=serve, args=(listener.accept()[0],)))
                    threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield made
    finally:
        made.over.set()
        for thread in (accepting, *threads):
            thread.join()


def file_of(data: bytes, type: str = "application/octet-stream", length: bool = True) -> bytes:
    """An answer that holds a file; without `length` it ends when the server hangs up (HTTP/1.0)."""
    head = f"HTTP/1.0 200 OK\r\nContent-Type: {type}\r\n"
    if length:
        head += f"Content-Length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


def folder(path: Path) -> Answer:
    """The files of a folder."""

    def answer(name: str, send: Callable[[bytes], None]) -> None:
        send(file_of((path / name.lstrip("/")).read_bytes()))

    return answer


def jpegs(count: int, size: str = "96x64") -> list[bytes]:
    """Images that say their numbers, from 0 on."""
    source = PatternSource("bars", size, live=False, seconds=count / 25)
    source.open_blocking()
    made = []
    for frame in iter(source.read, None):
        file = io.BytesIO()
        pixels = np.ascontiguousarray(frame.data[:, 0].transpose(1, 2, 0))
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        made.append(file.getvalue())
    return made


def camera(
    images: list[bytes], fps: float, over: Callable[[], bool] = lambda: False, length: bool = True
) -> Answer:
    """Sends each caller the images, at `fps`, as cameras of the web do, and hangs up."""

    def answer(path: str, send: Callable[[bytes], None]) -> None:
        send(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
            b"Content-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n"
        )
        began = time.monotonic()
        for number, image in enumerate(images):
            time.sleep(max(0.0, began + number / fps - time.monotonic()))
            if over():
                return
            said = f"Content-Length: {len(image)}\r\n" if length else ""
            head = f"--frame\r\nContent-Type: image/jpeg\r\n{said}\r\n"
            send(head.encode() + image + b"\r\n")
        send(b"--frame--\r\n")

    return answer
