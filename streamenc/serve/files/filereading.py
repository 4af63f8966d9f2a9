"""FileReader: a stranger's file as the frames that an encoder takes, within bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction

from streamenc.errors import InputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource, Transform
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.pictures.album import check_size
from streamenc.io.media.videosource import VideoSource
from streamenc.io.text.textsource import TextSource
from streamenc.serve.limits import Limits

# An image counts as so much of `max_body_seconds`, however short it is to be shown.
LEAST_IMAGE_SECONDS = Fraction(1, 60)
# Segments of text go through a model together.
MAX_TEXTS = 100_000


class FileReader(BlockingSource):
    """Decodes a file and prepares it, a step's worth at a time: all in this node's own thread.

    FFmpeg gets containers of media alone, and opens nothing that they name.

    Args:
        nodes: What prepares it, in order.
        kind: "audio", "video" or "text".

    Attributes:
        samples: Samples, images or texts that were decoded so far, at the file's own `rate`.
        seconds: How long they last.

    Raises:
        MediaError: From `open` and `frames`, where it is no such file.
        InputError: From `frames`, where there is more in it than is taken.
    """

    def __init__(self, path: str, kind: str, nodes: Iterable[Transform], limits: Limits) -> None:
        self._nodes, self._limits, self._kind = list(nodes), limits, kind
        self._source: BlockingSource
        if kind == "text":
            self._source = TextSource(path, "lines")
        else:
            media = VideoSource(path) if kind == "video" else MediaSource(path)
            media.distrust(limits.max_pixels)
            self._source = media
        self.replayed = True
        self.samples = 0
        self.rate = Fraction(0)
        self.seconds = Fraction(0)
        self._ready: deque[Frame] = deque()
        self._flushed = False

    def open_blocking(self) -> StreamInfo:
        info = self._source.open_blocking()
        self.rate = info.rate
        if info.kind == "video":
            height, width = (side or 0 for side in info.shape[2:])
            check_size(width, height, self._limits.max_pixels)
        said = self._source.duration_seconds or 0.0
        if said > self._limits.max_body_seconds:
            raise self._too_long(said)
        self._time_base = info.time_base
        for node in self._nodes:
            info = node.open(info)
        return info

    @property
    def remarks(self) -> list[str]:  # type: ignore[override]
        """Of all that it went through."""
        of_nodes = [remark for node in self._nodes for remark in node.remarks]
        return [*self._source.remarks, *of_nodes]

    def read(self) -> Frame | None:
        while not self._ready and not self._flushed:
            frame = self._source.read()
            if frame is None:
                self._flushed, self.broken = True, self._source.broken
                self._ready.extend(self._flush())
            else:
                self._count(frame)
                self._ready.extend(self._through(self._nodes, [frame]))
        return self._ready.popleft() if self._ready else None

    def close_blocking(self) -> None:
        self._source.stop()
        self._source.close_blocking()
        for node in self._nodes:
            node.close()

    def _through(self, nodes: list[Transform], frames: Iterable[Frame]) -> Iterator[Frame]:
        if not nodes:
            yield from frames
            return
        first, *rest = nodes
        for frame in frames:
            yield from self._through(rest, first.push(frame))

    def _flush(self) -> Iterator[Frame]:
        for number, node in enumerate(self._nodes):
            yield from self._through(self._nodes[number + 1 :], node.flush())

    def _count(self, frame: Frame) -> None:
        self.samples += frame.data.shape[1]
        if self._kind == "text":
            if self.samples > MAX_TEXTS:
                raise InputError(f"more than {MAX_TEXTS} lines; send them in several requests")
            return
        seconds = frame.duration * self._time_base
        if self._kind == "video":
            seconds = max(seconds, frame.data.shape[1] * LEAST_IMAGE_SECONDS)
        self.seconds += seconds
        if self.seconds > self._limits.max_body_seconds:
            raise self._too_long(float(self.seconds))

    def _too_long(self, seconds: float) -> InputError:
        most = self._limits.max_body_seconds
        return InputError(
            f"the file lasts {seconds:.0f} s or more; at most {most:g} s are taken: cut it, or "
            "stream it to /v1/stream"
        )
