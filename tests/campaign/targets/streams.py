"""Streams that packets describe well and that are absurd, into every kind of node and sink."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from streamenc.errors import StreamencError
from streamenc.graph.clock import MonotonicClock
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform, BlockingSink, BlockingSource, Sink, Transform
from streamenc.io.files.ecdc import EcdcSink, EcdcSource
from streamenc.io.files.jsonlines import JsonLinesSink
from streamenc.io.files.null import NullSink
from streamenc.io.files.recording import RecordingSink, RecordingSource
from streamenc.io.files.soundwriter import AudioFileSink
from streamenc.io.files.standard.jsonsource import JsonLinesSource
from streamenc.io.files.standard.standardoutput import PcmSink
from streamenc.io.files.tables.npz import NpzSink, NpzSource
from streamenc.io.files.tables.parquet import ParquetSink, ParquetSource
from streamenc.io.files.videowriter import VideoFileSink
from streamenc.io.network.packets import PacketReader, PacketWriter
from streamenc.io.network.wire import MAGIC, MAJOR, MINOR, Data, Info, decode, fitted
from streamenc.nodes.align import Align, Epoch
from streamenc.nodes.chunker import Chunker
from streamenc.nodes.codes.relayout import FromLayout, ToLayout
from streamenc.nodes.fit import Fit
from streamenc.nodes.gaps import Gaps
from streamenc.nodes.pace import Pace
from streamenc.nodes.resample import Resample
from streamenc.nodes.runs import Runs
from streamenc.nodes.select import Select

# As packets say it: kind, time base, rate, shape, dtype, model, entries, in segments.
PLAUSIBLE: dict[str, list[Any]] = {
    "codes": ["codes", 1, 24000, 25, 2, [4, None], "u2", "demo", 1024, False],
    "units": ["codes", 1, 16000, 50, 1, [1, None], "u2", "demo", 500, False],
    "encodec": ["codes", 1, 24000, 75, 1, [8, None], "u2", "facebook/encodec_24khz", 1024, False],
    "audio": ["audio", 1, 16000, 16000, 1, [1, None], "f4", "", 0, False],
    "stereo": ["audio", 1, 90000, 48000, 1, [2, None], "f4", "", 0, False],
    "video": ["video", 1, 90000, 25, 1, [3, None, 16, 24], "u1", "", 0, False],
    "features": ["features", 1, 16000, 50, 1, [8, None], "f4", "demo", 0, False],
    "grid": ["codes", 1, 90000, 3, 1, [1, None, 2, 3], "u4", "demo", 64000, False],
    "text": ["text", 1, 1000, 1, 1, [1, None], "u1", "", 0, True],
}
ABSURD = (None, 0, 1, 2, 7, 10**6, 2**31 - 1, 2**40, 2**62 - 1, 2**62, 2**63 - 1, -1)
ABSURD_SHAPES: tuple[list[int | None], ...] = (
    [], [None], [1], [0, None], [1, 0], [None, None], [2, None, 1], [2**20, None], [1] * 8,
    [3, None, 0, 4], [3, None, 4, 0], [3, None, 1, 1], [3, None, 1, 20000], [4, None, 4, 4],
    [8, None, 0], [1000, None], [300, None],
)  # fmt: skip
ABSURD_SCALES = (0.0, -1.0, 1e-30, 1e30, 1e308, float("nan"), float("inf"))
MAX_PAYLOAD = 1 << 16
# Where streams of a kind are not refused at once.
FILES = ["null", "jsonl", "arrows", "parquet", "npz", "gaps", "pace", "select"]
CODES = [*FILES, "flatten", "delay", "undelay"]
SOUND = ["wav", "flac", "opus", "pcm", "mkv", "resample", "resample as it comes", "chunker"]
LIKELY = {
    "audio": [*FILES, *SOUND, "align"],
    "stereo": [*FILES, *SOUND, "align"],
    "codes": CODES,
    "units": [*FILES, "runs"],
    "encodec": [*CODES, "ecdc", "ecdc"],
    "grid": CODES,
    "features": FILES,
    "text": [*FILES, "align"],
    "video": [*FILES, "mkv", "fit", "fit to a size", "shortest", "align"],
}

Node = Transform | AsyncTransform | Sink


class _Now(MonotonicClock):
    """Nothing has to be waited for."""

    async def sleep_until_ns(self, due_ns: int) -> None:
        return None


class Streams:
    """A description and some frames, as packets, through the reader into a node or sink; what a
    file then holds is read back."""

    seconds, peak_bytes = 2.0, 200 << 20

    def __init__(self, folder: Path) -> None:
        path = str(folder / "stream")
        self._into: dict[str, Callable[[], Node]] = {
            "null": NullSink,
            "wav": lambda: AudioFileSink(path + ".wav"),
            "flac": lambda: AudioFileSink(path + ".flac"),
            "opus": lambda: AudioFileSink(path + ".opus"),
            "pcm": lambda: PcmSink(path + ".pcm"),
            "mkv": lambda: VideoFileSink(path + ".mkv"),
            "jsonl": lambda: JsonLinesSink(path + ".jsonl", values=True),
            "arrows": lambda: RecordingSink(path + ".arrows"),
            "parquet": lambda: ParquetSink(path + ".parquet"),
            "npz": lambda: NpzSink(path + ".npz"),
            "ecdc": lambda: EcdcSink(path + ".ecdc"),
            "resample": lambda: Resample(24000, 1),
            "resample as it comes": lambda: Resample(48000),
            "fit": lambda: Fit(unit=8),
            "fit to a size": lambda: Fit(size=(32, 32)),
            "shortest": lambda: Fit(size=(32, 32), shortest=40),
            "align": lambda: Align(Epoch()),
            "gaps": lambda: Gaps(500),
            "pace": Pace,
            "runs": Runs,
            "chunker": lambda: Chunker(960, 320),
            "flatten": lambda: ToLayout("flat"),
            "delay": lambda: ToLayout("delay"),
            "undelay": lambda: FromLayout("delay", 1024),
            "select": lambda: Select(0),
        }
        self._back: dict[str, Callable[[], BlockingSource]] = {
            "jsonl": lambda: JsonLinesSource(path + ".jsonl"),
            "arrows": lambda: RecordingSource(path + ".arrows"),
            "parquet": lambda: ParquetSource(path + ".parquet"),
            "npz": lambda: NpzSource(path + ".npz"),
            "ecdc": lambda: EcdcSource(path + ".ecdc"),
        }

    def case(self, rng: Random) -> bytes:
        kind = rng.choice(list(PLAUSIBLE))
        stream = [*PLAUSIBLE[kind]]
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
            field = rng.randrange(len(stream))
            if field == 5:
                stream[5] = rng.choice(ABSURD_SHAPES)
            elif field in (0, 6):
                stream[field] = rng.choice([each[field] for each in PLAUSIBLE.values()] + ["b2"])
            elif field == 7:
                stream[7] = rng.choice(("", "a" * 1024, "\x1b[2J\n", "../../x", "\u202e"))
            elif field == 9:
                stream[9] = not stream[9]
            else:
                stream[field] = rng.choice(ABSURD)
        frames, pts = [], 0
        for seq in range(rng.choice((1, 2, 3, 5))):
            shape = [rng.choice((0, 1, 1, 3, 50, 1000)) if n is None else n for n in stream[5]]
            frame = [0, seq, pts, rng.choice((0, 1, 1920)), 0, 1.0, stream[6], shape, None]
            if rng.random() < 0.15:
                frame[rng.choice((1, 2, 3, 8))] = rng.choice(ABSURD)
            if rng.random() < 0.1:
                frame[5] = rng.choice(ABSURD_SCALES)
            if rng.random() < 0.1:
                frame[7] = rng.choice(([1], [], [1, 1, 1], [2, 2], [1, 1000], [3, 1, 4, 4]))
            frame[4] = rng.choice((0, 0, 0, 1, 2, 3))
            pts += rng.choice((0, 1, 1920, -1920, 2**33))
            frames.append(frame)
        likely = LIKELY.get(kind, list(self._into))
        recipe = {
            "into": rng.choice(likely if rng.random() < 0.8 else list(self._into)),
            "stream": stream,
            "frames": frames,
            "fill": rng.choice((0, 0, 1, 63, 127, 255)),
        }
        return json.dumps(recipe).encode()

    def take(self, data: bytes) -> None:
        recipe = json.loads(data)
        reader = PacketReader(MonotonicClock())
        frames = [*filter(None, map(reader.feed, _packets(recipe)))]
        if reader.info is None or not frames:
            raise Refused
        name = recipe["into"]
        asyncio.run(_driven(self._into[name](), reader.info, frames))
        writer = PacketWriter(reader.info, MonotonicClock())
        again = decode(writer.info)
        assert isinstance(again, Info)
        assert again.info.shape == reader.info.shape, "what was read is sent as something else"
        for frame in frames:
            packet = decode(writer.packet(frame))
            assert isinstance(packet, Data)
            fitted(packet, again.info)
            writer.sent(frame)
        decode(writer.end())
        if name in self._back:
            _read_back(self._back[name]())


class Refused(StreamencError):
    """The reader skipped it all."""


def _packets(recipe: dict[str, Any]) -> Iterator[bytes]:
    stream = recipe["stream"]
    kind, *rest = stream
    head = MAGIC + bytes((MAJOR, MINOR))
    yield head + b"I" + msgspec.msgpack.encode([7, 0, [kind, *rest], []])
    for track, seq, pts, duration, flags, scale, dtype, shape, segment in recipe["frames"]:
        items = 1
        for size in shape:
            items *= size or 0
        itemsize = int(dtype[1])
        payload = bytes([recipe["fill"]]) * min(MAX_PAYLOAD, items * itemsize)
        fields = [7, track, seq, pts, duration, flags, 0, scale, dtype, shape, payload, 0]
        fields += [] if segment is None else [segment]
        yield head + b"D" + msgspec.msgpack.encode(fields)


async def _driven(node: Node, info: StreamInfo, frames: list[Frame]) -> None:
    """What the graph does with a node."""
    if isinstance(node, Transform):
        try:
            node.open(info)
            for frame in frames:
                list(node.push(frame))
            list(node.flush())
        finally:
            node.close()
        return
    node.clock = _Now()
    try:
        if isinstance(node, BlockingSink):
            node.open_blocking(info)
            for frame in frames:
                node.write_blocking(frame)
        elif isinstance(node, Sink):
            await node.open(info)
            for frame in frames:
                await node.write(frame)
        else:
            await node.open(info)
            for frame in frames:
                await node.push(frame)
            await node.flush()
    finally:
        if isinstance(node, BlockingSink):
            node.close_blocking()
        else:
            await node.aclose()


def _read_back(source: BlockingSource) -> None:
    try:
        source.open_blocking()
        while source.read() is not None:
            pass
    except StreamencError as error:
        raise AssertionError(f"wrote what it cannot read: {error}") from error
    finally:
        source.close_blocking()


def target(folder: Path) -> Streams:
    return Streams(folder)
