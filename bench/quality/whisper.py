"""Whisper's streamed states beside offline ones, over latency and cost; its own command."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import streamenc
from bench.harness import Contestant, Table, count, machine, measure
from bench.quality.measures import RATE, Audio, Clip, read_clips
from bench.quality.recognition import WHISPER_SECONDS, Whisper, word_errors
from streamenc.codec import Codec
from streamenc.errors import StreamencError
from streamenc.stream import Stream

RESULTS = Path(__file__).parents[1] / "results"
STATES = 50 * WHISPER_SECONDS
PEER = "transformers, all 30 s each second"

# Rows of the table: name, options. Of equal latency are a chunk of 4 s, one of 2 s with 2 s ahead,
# and one of 1 s with 3 s ahead.
CONDITIONS: list[tuple[str, dict[str, Any]]] = [
    ("window", {"mode": "window", "hop_ms": 1000, "emit": "window"}),
    ("window", {"mode": "window", "hop_ms": 1000, "ahead_ms": 0}),
    ("window", {"mode": "window", "hop_ms": 1000, "ahead_ms": 1000}),
    ("chunked", {"chunk_ms": 1000, "ahead_ms": 0}),
    ("chunked", {"chunk_ms": 500, "ahead_ms": 500}),
    ("chunked", {"chunk_ms": 2000, "ahead_ms": 0}),
    ("chunked", {"chunk_ms": 1000, "ahead_ms": 1000}),
    ("chunked", {"chunk_ms": 500, "ahead_ms": 1500}),
    ("chunked", {"chunk_ms": 1000, "ahead_ms": 2000}),
    ("chunked", {"chunk_ms": 4000, "ahead_ms": 0}),
    ("chunked", {"chunk_ms": 2000, "ahead_ms": 2000}),
    ("chunked", {"chunk_ms": 1000, "ahead_ms": 3000}),
]

EXAMPLES = """\
latency   the longest that sound waits for its states: a step and what it looks ahead
WER       of what transformers' decoder makes of the streamed states, against what it makes of the
          offline ones: errors / words
cosine    of each layer's streamed states with the offline ones, mean over all of them; 0 is what
          the first layer takes, the last one lies behind the final norm
core      ms of one thread for a second of sound, in 10 ms: 3 % are 30 ms
step      its median time

example:
  python -m bench.quality.whisper --speech test-other --whisper whisper-tiny.en --limit 40
"""


@dataclass(frozen=True, slots=True)
class Point:
    """A row: what a way of streaming costs, and how far its states are from the offline ones.

    cosine    Of each hidden state of the encoder.
    ms        Of one thread, for a second of sound; median.
    step_ms   Median; 0 for offline.
    """

    name: str
    latency_seconds: float
    errors: int
    words: int
    cosine: list[float]
    ms: float
    step_ms: float

    @property
    def wer(self) -> float:
        return self.errors / max(1, self.words)


def name_of(kind: str, options: dict[str, Any]) -> str:
    """As the tables print it."""
    ahead = options.get("ahead_ms", 0) / 1000
    step = options.get("chunk_ms", options.get("hop_ms", 0)) / 1000
    if options.get("emit") == "window":
        return f"{kind}, {step:g} s, all its states"
    return f"{kind}, {step:g} s" + (f" + {ahead:g} s ahead" if ahead else "")


@dataclass(frozen=True, slots=True)
class Offline:
    """What transformers makes of a whole utterance: each layer's states, and the text."""

    hidden: list[Tensor]
    text: str


@dataclass(frozen=True, slots=True)
class Tally:
    """What is counted of a condition, over utterances.

    cosines  Sums over the states, by layer.
    """

    errors: int = 0
    words: int = 0
    states: int = 0
    cosines: Tensor = torch.tensor(0.0)

    def plus(self, other: Tally) -> Tally:
        return Tally(
            self.errors + other.errors,
            self.words + other.words,
            self.states + other.states,
            self.cosines + other.cosines,
        )

    @property
    def cosine(self) -> list[float]:
        return [float(total) / self.states for total in self.cosines]


class Windows:
    """All layers' states of each window of an utterance; the last utterance's are kept.

    What a stream gives of them is cut out below, as computing them takes long; that it gives just
    that is proven in tests/models/whisper/test_whisper.py.
    """

    def __init__(self, folder: Path) -> None:
        self._codec = streamenc.load(
            folder, part="encoder", mode="window", hop_ms=1000, emit="window", layers="all"
        )
        self._clip, self._windows = "", list[Tensor]()

    def __call__(self, clip: Clip) -> list[Tensor]:
        if clip.name != self._clip:
            self._windows = list(_states(self._codec, clip.at(RATE)).split(STATES, dim=-1))
            self._clip = clip.name
        return self._windows

    def hops(self, clip: Clip, ahead: int) -> Tensor:
        """Each hop's states, from the window that ends `ahead` hops after it, or with the sound."""
        windows, hop = self(clip), STATES // WHISPER_SECONDS
        parts = []
        for index, window in enumerate(windows):
            gone = max(0, (index + 1) * hop - STATES)
            stop = (index - ahead + 1) * hop if index < len(windows) - 1 else STATES + gone
            parts.append(window[..., max(0, (index - ahead) * hop - gone) : max(0, stop - gone)])
        return torch.cat(parts, dim=-1)


class Condition:
    """A way of streaming.

    codec  What is timed, and gives the last layer's states.
    """

    def __init__(self, folder: Path, kind: str, options: dict[str, Any], windows: Windows) -> None:
        self.name = name_of(kind, options)
        self.codec = streamenc.load(folder, part="encoder", **options)
        self._options, self._windows = options, windows
        chunked = kind == "chunked"
        every = {"part": "encoder", "layers": "all", **options}
        self._all = streamenc.load(folder, **every) if chunked else None

    def hidden(self, clip: Clip) -> list[Tensor]:
        """Each layer's streamed states, (1, width, states), without those of what was padded."""
        if self._all is not None:
            states = _states(self._all, clip.at(RATE))
        elif "ahead_ms" in self._options:
            states = self._windows.hops(clip, self._options["ahead_ms"] // 1000)
        else:
            states = self._windows(clip)[-1]
        states = states[..., : min(STATES, -(-len(clip.at(RATE)) // 160 // 2))]
        return list(states.split(self.codec.spec.output.channels, dim=1))

    def heard(self, whisper: Whisper, clip: Clip, known: Offline, silence: Tensor) -> Tally:
        """How an utterance comes out, beside what is known of it offline."""
        hidden = self.hidden(clip)
        text = whisper.heard(self.whole(clip, hidden[-1], silence))
        errors, words = word_errors(known.text, text)
        ours = torch.stack([layer[0] for layer in hidden])
        count = ours.shape[-1]
        theirs = torch.stack([layer[0, :, :count] for layer in known.hidden])
        return Tally(errors, words, count, torch.cosine_similarity(ours, theirs, dim=1).sum(dim=1))

    def whole(self, clip: Clip, states: Tensor, silence: Tensor) -> Tensor:
        """The last layer's states as the decoder wants them, 1500: the rest those of silence."""
        if self._options.get("emit") == "window":
            return self._windows(clip)[-1][:, -self.codec.spec.output.channels :]
        return torch.cat((states, silence[..., states.shape[-1] :]), dim=-1)


def _states(codec: Codec, audio: Audio) -> Tensor:
    """Hop by hop, as it would be live."""
    with codec.stream() as stream:
        parts = [stream.push(audio), stream.flush()]
    assert all(isinstance(part, Tensor) for part in parts)
    return torch.cat([part for part in parts if isinstance(part, Tensor)], dim=-1)


def timed(conditions: Sequence[Condition], whisper: Whisper, sound: Audio, rounds: int) -> Table:
    """All of them live, in turns, with what others do: the published encoder at each second."""
    contestants = [Contestant(PEER, _reencoding(whisper, sound))]
    for condition in conditions:
        live = _live(condition.codec, sound)
        spec = condition.codec.spec
        seconds = spec.hop / RATE
        calls, units = (1, round(seconds)) if seconds >= 1 else (round(1 / seconds), 1)

        def step(_: int, live: Iterator[None] = live, calls: int = calls) -> None:
            list(islice(live, calls))

        contestants.append(Contestant(condition.name, step, units=units))
    return measure(
        "Whisper's encoder, live",
        "ms per second of sound",
        contestants,
        reference=PEER,
        rounds=rounds,
        warmup=4,
        threads=torch.get_num_threads(),
    )


def _reencoding(whisper: Whisper, sound: Audio) -> Any:
    def step(index: int) -> None:
        end = (index % (len(sound) // RATE) + 1) * RATE
        whisper.hidden(whisper.features(sound[max(0, end - WHISPER_SECONDS * RATE) : end]))

    return step


def _live(codec: Codec, sound: Audio) -> Iterator[None]:
    """A step at each turn, over and over the sound."""
    stream, at = Stream(codec.encoder), 0
    while True:
        wanted = codec.spec.hop if stream.state is not None else codec.spec.lead
        stream.push(np.take(sound, range(at, at + wanted), mode="wrap"))
        at = (at + wanted) % len(sound)
        yield


def run(folder: Path, clips: Sequence[Clip], rounds: int) -> tuple[list[Point], Table, int]:
    """Everything, and how many utterances were done: all, or those until Ctrl-C."""
    whisper, windows = Whisper(folder), Windows(folder)
    conditions = [Condition(folder, kind, options, windows) for kind, options in CONDITIONS]
    sound = np.concatenate([clip.at(RATE) for clip in clips])
    table = timed(conditions, whisper, sound, rounds)
    # What the decoder gets for the rest of its 30 s.
    nothing = np.zeros(WHISPER_SECONDS * RATE, np.float32)
    silence = whisper.hidden(whisper.features(nothing))[-1]
    tallies = [Tally() for _ in conditions]
    done = 0
    try:
        for clip in clips:
            start = time.monotonic()
            hidden = whisper.hidden(whisper.features(clip.at(RATE)))
            known = Offline(hidden, whisper.heard(hidden[-1]))
            added = [condition.heard(whisper, clip, known, silence) for condition in conditions]
            tallies = [old.plus(new) for old, new in zip(tallies, added, strict=True)]
            done += 1
            took = f"{time.monotonic() - start:.0f} s"
            print(f"{done} of {len(clips)}, {clip.name}: {took}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        if not done:
            raise
        print("stopped; what follows is of the utterances so far", file=sys.stderr)
    times = {row.name: row.p50_ms or 0.0 for row in table.rows}
    words, peer = tallies[0].words, times[PEER]
    ones = [1.0] * len(tallies[0].cosine)
    points = [
        Point("offline, at the end", WHISPER_SECONDS, 0, words, ones, peer / WHISPER_SECONDS, 0.0),
        Point(PEER, 1.0, 0, words, ones, peer, peer),
    ]
    for condition, tally in zip(conditions, tallies, strict=True):
        spec, ms = condition.codec.spec, times[condition.name]
        step_ms = ms * spec.hop / RATE
        name, latency = condition.name, spec.latency_seconds
        points.append(Point(name, latency, tally.errors, words, tally.cosine, ms, step_ms))
    return points, table, done


def print_points(points: Sequence[Point]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Printed

    console = Console()
    console.width = max(console.width, 120)
    printed = Printed(box=box.SIMPLE_HEAD)
    printed.add_column("")
    columns = ["latency s", "WER", *(f"cos {i}" for i in range(len(points[0].cosine)))]
    for column in [*columns, "core %", "step ms"]:
        printed.add_column(column, justify="right")
    for point in points:
        cells = [f"{point.latency_seconds:.2f}", f"{point.wer:.3f}"]
        cells += [f"{cosine:.4f}" for cosine in point.cosine]
        cells += [f"{point.ms / 10:.1f}", f"{point.step_ms:.1f}" if point.step_ms else ""]
        printed.add_row(point.name, *cells)
    console.print(printed)


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    torch.set_num_threads(args.threads)
    where = machine()
    try:
        clips = read_clips(args.speech, WHISPER_SECONDS, args.limit)
        points, table, done = run(args.whisper, clips, args.rounds)
    except StreamencError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_points(points)
    seconds = sum(len(clip.audio) / clip.rate for clip in clips[:done])
    plain = {
        "name": "whisper",
        "machine": where,
        "settings": {
            "model": args.whisper.name,
            "threads": args.threads,
            "rounds": args.rounds,
            "utterances": done,
            "seconds": round(seconds, 1),
        },
        "points": [{**asdict(point), "wer": point.wer} for point in points],
        "tables": [asdict(table)],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(plain, indent=1) + "\n")
    print(f"wrote {args.out}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality.whisper",
        description="Measures Whisper's streamed states: word errors, cosines, latency and cost.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--speech", type=Path, required=True, metavar="FOLDER", help="utterances of up to 30 s")
    add("--whisper", type=Path, required=True, metavar="FOLDER", help="transformers' Whisper")
    add("--limit", type=count, metavar="N", help="utterances, the first by name (all)")
    add("--rounds", type=count, default=40, metavar="N", help="to time, a second each (40)")
    add("--threads", type=count, default=1, metavar="N", help="of a step (1)")
    default = RESULTS / "whisper.json"
    add("--out", type=Path, default=default, metavar="FILE.json", help="(bench/results/...)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
