"""FramePackets: a stream's output as packets for its client."""

from __future__ import annotations

import time

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.io.network.wire import encode_frame, encode_info

# The stream of every packet: a connection carries one.
STREAM = 1


class FramePackets:
    """Makes packets, from the first frame on.

    Attributes:
        born_unix_ns: When the stream was opened.
        info: What comes out; None while that is not known.
        info_packet: That as a packet.
    """

    def __init__(self) -> None:
        self.born_unix_ns = time.time_ns()
        self.info: StreamInfo | None = None
        self.info_packet = b""

    def describe(self, info: StreamInfo) -> None:
        """Says what comes out. Raises FitError where no packet can hold a frame of it."""
        self.info, self.info_packet = info, encode_info(info, STREAM, self.born_unix_ns)

    def packet(self, frame: Frame, flagged: bool | None = None) -> bytes:
        """`flagged` is whether it is a discontinuity; None for what the frame says itself."""
        assert self.info is not None
        now_ns = time.time_ns()
        arrived_ns = frame.arrived_ns + now_ns - time.monotonic_ns()
        sent_ms = max(0, (now_ns - self.born_unix_ns) // 1_000_000)
        return encode_frame(frame, self.info, STREAM, max(0, arrived_ns), flagged, sent_ms)

    def flagged(self, frame: Frame) -> bytes:
        """The packet of a frame that follows what was dropped."""
        return self.packet(frame, True)
