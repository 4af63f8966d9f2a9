"""A camera that speaks RTSP, for tests: enough of the protocol for FFmpeg, images over RTP."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from itertools import count

import av
import numpy as np

from streamenc.io.media.pattern import PatternSource
from tests.support.clips import encoded

SDP = """v=0
o=- 0 0 IN IP4 127.0.0.1
s=camera
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=control:track1
""".replace("\n", "\r\n")


class Camera:
    """Sends numbered images, 25 a second, to each caller in turn, from `first` on.

    drop    Says of each RTP packet, by the number of its image, whether it gets lost.
    tcp     Whether it sends by the caller's connection, if asked; or else only by UDP.

    transports  What it was asked for, in order: "tcp" or "udp".
    """

    def __init__(
        self, listener: socket.socket, first: int, drop: Callable[[int], bool], tcp: bool
    ) -> None:
        self.transports: list[str] = []
        self._tcp = tcp
        self._listener = listener
        self._first = first
        self._drop = drop
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        self._listener.settimeout(0.05)
        with self._listener:
            while not self._done.is_set():
                with suppress(TimeoutError):
                    peer, _ = self._listener.accept()
                    with peer, suppress(ConnectionError):  # callers just hang up
                        self._talk(peer)

    def _talk(self, peer: socket.socket) -> None:
        send: Callable[[bytes], object] = peer.sendall
        peer.settimeout(0.05)
        request = b""
        while not self._done.is_set():
            try:
                received = peer.recv(4096)
            except TimeoutError:
                continue
            if not received:
                return
            request = _without_interleaved(request + received)
            while b"\r\n\r\n" in request:
                head, _, request = request.partition(b"\r\n\r\n")
                lines = head.decode()
                method = lines.split()[0]
                number = re.search(r"CSeq: *(\d+)", lines)
                assert number
                by_tcp = "RTP/AVP/TCP" in lines
                refused = method == "SETUP" and by_tcp and not self._tcp
                status = "461 Unsupported transport" if refused else "200 OK"
                answer = f"RTSP/1.0 {status}\r\nCSeq: {number[1]}\r\n"
                body = ""
                if method == "OPTIONS":
                    answer += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
                elif method == "DESCRIBE":
                    body = SDP
                    answer += f"Content-Type: application/sdp\r\nContent-Length: {len(SDP)}\r\n"
                elif method == "SETUP":
                    self.transports.append("tcp" if by_tcp else "udp")
                if method == "SETUP" and by_tcp and not refused:
                    answer += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
                    send = partial(_send_interleaved, peer)
                elif method == "SETUP" and not refused:
                    ports = re.search(r"client_port=(\d+)-(\d+)", lines)
                    assert ports
                    send = partial(_send_to, int(ports[1]))
                    answer += (
                        f"Transport: RTP/AVP;unicast;client_port={ports[1]}-{ports[2]};"
                        "server_port=9-10\r\nSession: 1\r\n"
                    )
                peer.sendall(f"{answer}\r\n{body}".encode())
                if method == "PLAY":
                    self._threads.append(threading.Thread(target=self._film, args=(send,)))
                    self._threads[-1].start()

    def _film(self, send: Callable[[bytes], object]) -> None:
        source = PatternSource("motion", "192x112", live=False)
        source.open_blocking()
        began = time.monotonic()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
            wire.bind(("127.0.0.1", 0))
            wire.setblocking(False)
            url = f"rtp://127.0.0.1:{wire.getsockname()[1]}?pkt_size=1200"
            with av.open(url, "w", format="rtp") as container:
                stream = container.add_stream(
                    encoded("libx264"), rate=25, width=192, height=112, pix_fmt="yuv420p",
                    options={"preset": "ultrafast", "tune": "zerolatency", "g": "5", "crf": "18"},
                )  # fmt: skip
                for number in count():
                    if self._done.wait(max(0, began + number / 25 - time.monotonic())):
                        return
                    source._number = self._first + number
                    made = source.read()
                    assert made is not None
                    pixels = np.ascontiguousarray(made.data[:, 0].transpose(1, 2, 0))
                    frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                    container.mux(stream.encode(frame))
                    with suppress(BlockingIOError):
                        while packet := wire.recv(2000):
                            if not self._drop(self._first + number):
                                send(packet)


def _without_interleaved(request: bytes) -> bytes:
    """Without what the caller says of his reception, where that is whole."""
    while request[:1] == b"$" and len(request) >= 4 + int.from_bytes(request[2:4], "big"):
        request = request[4 + int.from_bytes(request[2:4], "big") :]
    return request


def _send_interleaved(peer: socket.socket, packet: bytes) -> None:
    with suppress(OSError):
        peer.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)


def _send_to(port: int, packet: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.sendto(packet, ("127.0.0.1", port))


@contextmanager
def camera(
    port: int = 0,
    first: int = 0,
    drop: Callable[[int], bool] = lambda number: False,
    tcp: bool = False,
    transports: list[str] | None = None,
) -> Iterator[str]:
    """Its address. A `port` that was used a moment ago can be taken again.

    transports  Gets what the camera is asked for.
    """
    listener = socket.create_server(("127.0.0.1", port))
    made = Camera(listener, first, drop, tcp)
    if transports is not None:
        made.transports = transports
    try:
        yield f"rtsp://127.0.0.1:{listener.getsockname()[1]}/live"
    finally:
        made.close()
