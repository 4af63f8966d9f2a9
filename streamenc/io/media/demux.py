"""Demuxer: the wanted streams of one container as decoded frames, past whatever is damaged."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import av
import av.error

from streamenc.errors import MediaError
from streamenc.io.media.oggchain import OggChain

log = logging.getLogger(__name__)

MAX_ERRORS_IN_A_ROW = 1000
# Of one stream, while the first frame of another is awaited.
MAX_HELD_PACKETS = 2000
MAX_HELD_BYTES = 256 * 2**20
# What FFmpeg says where an Ogg file goes on in another form, or with another codec.
OTHER_LINK = (av.error.PatchWelcomeError, av.error.ArgumentError)
# Until a device is asked again that had nothing yet, and does not wait by itself.
RETRY_SECONDS = 0.005


class Demuxer:
    """Reads a container once, and decodes each of `streams`.

    Where an Ogg file goes on with a stream of another form, `streams` are of that from then on.

    What cannot be decoded is skipped; images that the decoder calls damaged are skipped, too.
    Each such packet or image is reported by a call of `lose`.

    halt    Ends it, also while a device has nothing yet.
    fatal   Makes the exception that is raised where reading itself fails; None skips that, too, as
            what follows in a damaged file can be whole.
    broken  Per stream: something before its next frame is missing. Its reader clears it.
    decode  By number of a stream, what decodes its packets in place of its own decoder.
    """

    def __init__(
        self,
        name: str,
        container: Any,
        streams: Sequence[Any],
        lose: Callable[[], None],
        halt: threading.Event,
        fatal: Callable[[av.error.FFmpegError], Exception] | None,
        decode: Mapping[int, Callable[[Any], Sequence[Any]]] | None = None,
    ) -> None:
        self.streams = list(streams)
        self.broken = [False] * len(self.streams)
        self._name = name
        self._container = container
        self._lose = lose
        self._halt = halt
        self._fatal = fatal
        self._decoders = decode or {}
        self._came = [0] * len(self.streams)  # bytes, until its first frame
        self._numbers = {stream.index: number for number, stream in enumerate(self.streams)}
        self._chain: OggChain | None = None
        self._newest: Any = None  # packet
        self._packets = self._read()
        self._first: dict[int, list[Any]] = {}
        self._held: deque[tuple[int, Any]] = deque()
        self._errors = 0
        self._warned = False

    def first_frames(self) -> list[Any]:
        """The first frame of each stream; `frames` gives them again.

        Raises MediaError where there is none.
        """
        held_bytes = 0
        for number, packet in self._packets:
            if number in self._first:
                self._held.append((number, packet))
                held_bytes += packet.size
            elif frames := self._decode(number, packet):
                self._first[number] = frames
            else:
                self._came[number] += packet.size
            if len(self._first) == len(self.streams):
                break
            if len(self._held) > MAX_HELD_PACKETS or held_bytes > MAX_HELD_BYTES:
                break
        for number, stream in enumerate(self.streams):
            if number not in self._first:
                empty = not self._came[number] and not self._held
                raise MediaError(
                    f"{self._name!r} opens as media, but no {stream.type} in it can be decoded"
                    + (": it has a header, and holds no samples" if empty else "")
                )
        return [self._first[number][0] for number in range(len(self.streams))]

    def frames(self) -> Iterator[tuple[int, Any]]:
        """(number of the stream, frame), to the end. Raises MediaError where that cannot be."""
        for number, decoded in self._first.items():
            for frame in decoded:
                yield number, frame
        self._first = {}
        while self._held:
            number, packet = self._held.popleft()
            for frame in self._decode(number, packet):
                yield number, frame
        for number, packet in self._packets:
            for frame in self._decode(number, packet):
                yield number, frame

    def close(self) -> None:
        """Closes the container; may be called twice."""
        container, self._container = self._container, None
        if container is not None:
            container.close()

    def _read(self) -> Iterator[tuple[int, Any]]:
        while True:
            try:
                for packet in self._container.demux(self.streams):
                    self._newest = packet
                    yield self._numbers[packet.stream.index], packet
                return
            except av.error.BlockingIOError:
                if self._halt.wait(RETRY_SECONDS):
                    return
            except av.error.FFmpegError as error:
                if isinstance(error, OTHER_LINK) and (link := self._next_link()) is not None:
                    yield from self._held_back()
                    self._follow(*link)
                    continue
                if self._fatal is not None:
                    raise self._fatal(error) from error
                self._skip(error, range(len(self.streams)))

    def _held_back(self) -> Iterator[tuple[int, Any]]:
        """Packets that make decoders give what they still hold."""
        for number, stream in enumerate(self.streams):
            end = av.Packet()
            end.stream = stream
            yield number, end

    def _next_link(self) -> tuple[Any, list[Any]] | None:
        """The next link of a chained Ogg and its streams; None where there is none to be read."""
        self._chain = self._chain or OggChain.of(self._container)
        if self._chain is None:
            return None
        position = 0 if self._newest is None else self._newest.pos
        try:
            link = self._chain.open_next(position or 0)
        except av.error.FFmpegError:
            return None
        if link is None:
            return None
        streams = []
        for stream in self.streams:
            kind = [s.index for s in self._container.streams if s.type == stream.type]
            offered = [s for s in link.streams if s.type == stream.type]
            streams += offered[kind.index(stream.index) :][:1]
        if len(streams) < len(self.streams):
            link.close()
            return None
        return link, streams

    def _follow(self, link: Any, streams: list[Any]) -> None:
        self.close()
        self._container, self.streams, self._newest = link, streams, None
        self._numbers = {stream.index: number for number, stream in enumerate(streams)}

    def _decode(self, number: int, packet: Any) -> list[Any]:
        try:
            own = self._decoders.get(number)
            decoded = packet.decode() if own is None else own(packet)
        except av.error.EOFError:
            return []
        except av.error.FFmpegError as error:
            self._skip(error, [number])
            return []
        if decoded:
            self._errors = 0
        if self.streams[number].type != "video":
            return list(decoded)
        whole = [frame for frame in decoded if not frame.is_corrupt]
        for _ in range(len(decoded) - len(whole)):
            self._note_loss("incomplete image", [number])
        return whole

    def _skip(self, error: av.error.FFmpegError, numbers: Sequence[int]) -> None:
        self._note_loss(error.strerror, numbers)
        if self._errors >= MAX_ERRORS_IN_A_ROW:
            raise MediaError(
                f"{self._name!r} is damaged: {self._errors} packets in a row cannot be decoded "
                f"({error.strerror})"
            ) from error
        self._errors += 1

    def _note_loss(self, reason: str | None, numbers: Sequence[int]) -> None:
        if not self._warned:
            self._warned = True
            kinds = " and ".join(self.streams[number].type for number in numbers)
            log.warning("%s: skipping damaged %s (%s)", self._name, kinds, reason)
        self._lose()
        for number in numbers:
            self.broken[number] = True
