"""Addresses of sources and sinks, with options: as a command line and a pipeline file have them."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from streamenc import io
from streamenc.cli.common import check_outputs
from streamenc.cli.look.inspection import inspect_file
from streamenc.graph.node import BlockingSource
from streamenc.io.reading import tracks_of
from tests.campaign.target import mutated

INPUTS = (
    "talk.wav", "talk.flac?channel=1", "a.arrows", "a.parquet", "a.npz", "a.ecdc", "a.jsonl",
    "pcm:a.pcm?rate=16000&channels=2&format=s16le&chunk_ms=20&scale=1/2&raw=yes", "a.pcm", "a.raw",
    "test:bars?size=320x240&fps=25&seconds=3&live=no&seed=1", "screen:?size=8x8&offset=0,0",
    "camera:0?fps=25", "mic:USB?rate=48000&channels=1&block_ms=10&max_queue_ms=99&latency=low",
    "zmq+tcp://127.0.0.1:5555?mode=credit&hwm=9&window=4&timeout_s=3&max_age_ms=1",
    "zmq+ipc:///tmp/x", "mqtt://u:p@127.0.0.1/t?qos=1&keepalive=3&queue=9&session_s=9&client_id=a",
    "mqtts://h/t?ca_file=x&insecure=yes", "ws://127.0.0.1:1/a?window=4", "text:a.txt?format=lines",
    "text+mqtt://127.0.0.1/t", "text+zmq+tcp://127.0.0.1:1", "https://[::1]:1/a.wav",
    "rtsp://h:1/a?x=y", "file:a.wav", "frames%04d.png", "*.wav", "a.ffconcat", "-",
)  # fmt: skip
OUTPUTS = (
    "null:", "x.arrows?flush_ms=200&overwrite=no", "x.parquet", "x.npz", "x.ecdc",
    "x.jsonl?values=yes", "x.wav?max_gap_s=3", "x.flac", "x.opus",
    "x.mp4?crf=20&fps=25&max_gap_s=3", "x.webm", "pcm:x.pcm",
    "zmq+tcp://*:5555?mode=credit&hwm=9&wait_subscribers=1&wait_s=3&join_ms=5", "zmq+ipc:///tmp/y",
    "mqtt://127.0.0.1/t?qos=1&queue=99&max_age_ms=5", "ws://127.0.0.1:1/a?queue=99&timeout_s=3",
    "speaker:?buffer_ms=100", "-?values=yes",
)  # fmt: skip
VALUES = (
    "", "0", "-1", "1e308", "nan", "inf", "-0", "9" * 400, "9" * 5000, "1e-320", "١٢", "１２",
    "1_0", "²", "true", "None", "0x10", "1/0", "1/3", "x" * 300, "x" * 9000, "%00", "%ff",
    "\ud800",
    "a\x00b", "\x1b[2J", "0,0", "0,1,2", "-", "[::1", "\n", "\u202e", "99999x99999", "0x0",
    "1" + "0" * 20,
)  # fmt: skip
HOSTS = ("[::1", "[::1]", "[v1.x]", "[]", "127.0.0.1:99999", ":", "a" * 300, "xn--", "\u2100", "*")


class Addresses:
    """Made into a source or sink, where it is a file opened; `inspect` of it."""

    seconds, peak_bytes = 2.0, 200 << 20

    def case(self, rng: Random) -> bytes:
        end = rng.choice(("input", "output"))
        address = rng.choice(INPUTS if end == "input" else OUTPUTS)
        what = rng.random()
        options = {}
        if what < 0.35 and "?" in address:
            head, _, query = address.partition("?")
            pairs = [pair.partition("=")[::2] for pair in query.split("&")]
            name = rng.choice(pairs)[0]
            if rng.random() < 0.5:
                address, options = (
                    head,
                    {name: rng.choice((*VALUES, 2**200, -1, 1e308, None, [1], True))},
                )
            else:
                value = rng.choice(VALUES)
                address = f"{head}?{name}={value}"
        elif what < 0.5 and "://" in address:
            scheme, _, rest = address.partition("://")
            address = (
                f"{scheme}://{rng.choice(HOSTS)}{rest[rest.find('/') :] if '/' in rest else ''}"
            )
        elif what < 0.7:
            at = rng.randrange(len(address) + 1)
            address = address[:at] + rng.choice(VALUES) + address[at:]
        elif what < 0.9:
            address = mutated(address.encode(), rng).decode(
                "utf-8", rng.choice(("surrogateescape", "replace"))
            )
        kind = rng.choice(("", "", "audio", "video", "av", "text", "x"))
        return json.dumps([end, kind, address, options]).encode()

    def take(self, data: bytes) -> None:
        end, kind, address, options = json.loads(data)
        if end == "output":
            io.sink_entry(address)
            io.sink(address, **options)  # opened, it might write anywhere
            check_outputs([address], overwrite=False)
            return
        io.source_entry(address)
        source = io.source(address, kind, **options)
        there = not address.startswith("-") and not io.source_entry(address).device
        if isinstance(source, BlockingSource) and there and "://" not in address:
            try:
                source.open_blocking()
                source.read()
            finally:
                source.close_blocking()
            tracks_of(address)
            inspect_file(address)


def target(folder: Path) -> Addresses:
    return Addresses()
