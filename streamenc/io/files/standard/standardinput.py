"""Standard input, and files of samples: a look at the first bytes says how they are read."""

from __future__ import annotations

import os
import threading

from streamenc.errors import MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.io.files.pcm import MAX_CHANNELS, MAX_RATE, PcmSource
from streamenc.io.files.standard.jsonsource import JsonLinesSource
from streamenc.io.media.audiosource import MediaSource
from streamenc.io.media.incoming.formats import Format, recognise
from streamenc.io.media.incoming.pipe import Pipe
from streamenc.io.media.incoming.wavehead import read_wave_head


class StandardInput(BlockingSource):
    """Whatever is piped in: `-`; or stands in a file that is called `.raw` or `.pcm`.

    A format that FFmpeg reads (WAV, also of unknown length, FLAC, MP3, Ogg, MP4, Matroska, ...) is
    decoded, as by MediaSource. JSON lines of tokens, as streamenc prints them, are tokens again.
    What begins as nothing known is samples without a header, as by PcmSource, and `remarks` says
    for what they were taken.

    rate      Of samples without a header: how many a second; 24000 if not given.
    channels  Of those: how many channels are interleaved; 1 if not given.
    format    Of those, see `pcm:`; s16le if not given.
    chunk_ms  Of those: length of a frame; 20 if not given.
    channel, scale  As of PcmSource.
    stream    Of a container: which one of its audio streams, from 0; by default the best one.

    Raises MediaError from `open` for what is neither.
    """

    def __init__(
        self,
        address: str = "-",
        rate: str | int | None = None,
        channels: str | int | None = None,
        format: str | None = None,
        chunk_ms: str | float | None = None,
        channel: str | int | None = None,
        scale: str | float = 1.0,
        stream: str | int | None = None,
    ) -> None:
        self.address = address
        self.replayed = address != "-" and os.path.isfile(address)
        self.remarks: list[str] = []
        self._halt = threading.Event()
        self._pipe: Pipe | None = None
        stated = {"rate": rate, "channels": channels, "format": format, "chunk_ms": chunk_ms}
        self._stated = {name: value for name, value in stated.items() if value is not None}
        self._said: list[str] = []
        self._channel, self._scale = channel, scale
        self._media = MediaSource(address, stream=stream, channel=channel, scale=scale)
        self._pcm = PcmSource(
            address,
            channel=channel,
            scale=scale,
            **self._stated,  # type: ignore[arg-type]
        )
        self._inner: BlockingSource | None = None

    async def open(self) -> StreamInfo:
        return await self.open_abandonable(self._halt)

    def open_blocking(self) -> StreamInfo:
        """Waits for the first bytes of a pipe."""
        pipe = self._pipe = Pipe(self.address, self._halt)
        self._inner = self._chosen(recognise(pipe.look(), pipe.ended), pipe)
        self._inner.clock = self.clock
        info = self._inner.open_blocking()
        if self._inner is self._media:
            self._check_stated(info, self._media.channels)
        elif isinstance(self._inner, PcmSource) and self._inner is not self._pcm:
            self._check_stated(info, self._inner.channels)
        self._follow(self._inner)
        return info

    def read(self) -> Frame | None:
        assert self._inner is not None
        try:
            return self._inner.read()
        finally:
            self._follow(self._inner)

    def stop(self) -> None:
        super().stop()
        self._halt.set()
        if self._inner is not None:
            self._inner.stop()

    def close_blocking(self) -> None:
        self._halt.set()
        if self._inner is not None:
            self._inner.close_blocking()
        if self._pipe is not None:
            self._pipe.close()

    @property
    def _name(self) -> str:
        return "standard input" if self.address == "-" else self.address

    def _chosen(self, found: Format | None, pipe: Pipe) -> BlockingSource:
        """What reads it. Raises MediaError where nothing does."""
        if found is None:
            pcm = self._pcm
            if self.address == "-":
                plural = "s" * (pcm.channels != 1)
                self._said.append(
                    f"took standard input for {pcm.format}, {pcm.channels} channel{plural}, "
                    f"{pcm.rate} Hz; say pcm:-?rate=... for another"
                )
            pcm.take(pipe, self._halt)
            return pcm
        if found.holds == "media":
            if pipe.regular or (wave := self._wave(pipe)) is None:
                self._media.take(pipe, self._halt)
                reader: BlockingSource = self._media
            else:
                reader = wave
            if self.address != "-":
                self._said.append(f"{self.address} begins as {found.name}, and was decoded as that")
            return reader
        if found.name == JsonLinesSource.format_name:
            lines = JsonLinesSource(self.address)
            lines.take(pipe, self._halt)
            return lines
        cure = {
            "image": "take it with a model of images",
            "tokens": "name it as a file: from a pipe, tokens are read as JSON lines",
            "other": "it holds no sound; say pcm:- where it is samples all the same",
        }[found.holds]
        if found.holds == "other" and self.address != "-":
            cure = f"say pcm:{self.address}?raw=true where it is samples all the same"
        raise MediaError(f"{self._name} begins as {found.name}: {cure}")

    def _wave(self, pipe: Pipe) -> PcmSource | None:
        """Reads the samples of a WAV as they come, where FFmpeg waits for 64 KiB of them first;
        None for all else."""
        head = read_wave_head(pipe.peek_at)
        if head is None or not head.data_at or not head.codec or head.padded:
            return None
        if not 1 <= head.channels <= MAX_CHANNELS or not 1 <= head.rate <= MAX_RATE:
            return None
        wave = PcmSource(
            self.address,
            head.rate,
            head.channels,
            head.codec.removeprefix("pcm_"),
            channel=self._channel,
            scale=self._scale,
        )
        pipe.skip(head.data_at)
        wave.take(pipe, self._halt, head.data_bytes)
        return wave

    def _check_stated(self, info: StreamInfo, channels: int) -> None:
        """What was said of samples without a header, and is not so by the header that came."""
        came = {"rate": str(info.rate), "channels": str(channels)}
        other = [
            f"{name}={value}"
            for name, value in self._stated.items()
            if came.get(name) != str(value)
        ]
        if other:
            self._said.append(
                f"{self._name} says itself that it is {came['rate']} Hz with {came['channels']} "
                f"channels; {', '.join(other)} is for samples without a header, and was not used"
            )

    def _follow(self, inner: BlockingSource) -> None:
        self.lost, self.broken = inner.lost, inner.broken
        self.duration_seconds = inner.duration_seconds
        self.remarks = [*self._said, *inner.remarks]
