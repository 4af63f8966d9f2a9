"""How good codecs sound: objective measures on a folder of speech, with Opus beside them.

    python -m bench.quality --speech FOLDER [--models nano] [--opus 6 8 12 16] [--whisper FOLDER]

Each decoded utterance is compared with its uncompressed original, mono at 16 kHz. No level is
touched, and only Opus is aligned (see `conditions.opus`); a model that comes late is reported as
late. For other scripts: `measures.measure` for one pair of signals, `recognition.word_errors` for
one pair of transcripts.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.harness import count, machine
from bench.quality.conditions import Condition, Subject, opus
from bench.quality.measures import (
    RATE,
    Audio,
    Clip,
    Visqol,
    estimate,
    fitted,
    lag_samples,
    measure,
    read_clips,
    required,
)
from bench.quality.recognition import WHISPER_SECONDS, Whisper, word_errors
from bench.quality.report import (
    MEASURES,
    Book,
    Pieces,
    Probe,
    Report,
    Result,
    draw,
    print_report,
    write_json,
)
from streamenc.coding.usage import perplexity
from streamenc.errors import InputError, OutputError, StreamencError, UsageError

PACKAGES = ("av", "soxr", "pesq", "pystoi", "visqol-python", "ai-edge-litert", "jiwer")
TOLERATED_LAG_SAMPLES = 3
TOLERATED_RATE_ERROR = 0.02
PIECE_SECONDS = 0.02
PIECED_SECONDS = 4.0
PROBE_SECONDS = 2

NO_SPEECH = """\
no speech to measure with: give --speech FOLDER, any folder of recordings. A common set is
LibriSpeech test-other (CC BY 4.0, 328 MB):
  curl -L https://www.openslr.org/resources/12/test-other.tar.gz | tar xz
  python -m bench.quality --speech LibriSpeech/test-other --limit 40"""

EXAMPLES = """\
PESQ-wb   ITU-T P.862.2, up to 4.64; brackets hold the 95 % bootstrap interval over utterances
STOI      short-time objective intelligibility, up to 1
ViSQOL    speech mode, mapped as Google's own program does by default, up to about 4.2
SI-SDR    scale-invariant signal-to-distortion ratio: how far the waveform is kept
WER       of Whisper's transcript against its own transcript of the original, errors / words

Opus chooses its own bandwidth: at 6 and 8 kbit/s it may be narrowband, with nothing above 4 kHz.

examples:
  python -m bench.quality --speech LibriSpeech/test-other --limit 40 --out quality.json
  python -m bench.quality --speech clips --whisper whisper-tiny.en --curve quality.png
  python -m bench.quality --speech clips --models nano ./mine.safetensors --codebooks 8 --no-visqol
  python -m bench.quality --speech clips --models --opus 6 12      Opus only

It needs the extra `quality`: pip install 'streamenc[quality]'. Nothing is downloaded but models
that --models names on the Hub.
"""


def codebook_use(subject: Subject, clips: Iterable[Clip]) -> list[Book]:
    """Of every codebook, over all clips."""
    codes = torch.cat([subject.codes(clip)[0] for clip in clips], dim=-1).cpu().numpy()
    size, frames = subject.codec.spec.codebook_size, codes.shape[-1]
    books = []
    for index, book in enumerate(codes, 1):
        used = len(np.unique(book)) / size
        books.append(Book(subject.name, index, size, frames, perplexity(book), used))
    return books


def probe_signals(rate: int) -> dict[str, Audio]:
    """Some seconds each of what is no speech, (samples,) at `rate` Hz, by name."""
    t = np.arange(PROBE_SECONDS * rate) / rate
    noise = np.random.default_rng(0).normal(0, 0.1, len(t))
    # A major over three octaves, each tone with its harmonics.
    tones = [110, 220, 277.18, 329.63, 440, 554.37, 659.26]
    chord = sum(np.sin(2 * np.pi * k * f * t + f) / k for f in tones for k in range(1, 6))
    clicks = np.zeros_like(t)
    clicks[:: rate // 10] = 1
    signals = {
        "silence": np.zeros_like(t),
        "white noise, -20 dBFS": noise / np.sqrt(np.mean(noise**2)) * 0.1,
        "square wave, 1 kHz, 0 dBFS": np.where((t * 1000) % 1 < 0.5, 1.0, -1.0),
        "chord, 0 dBFS": chord / np.abs(chord).max(),
        "clicks, 0 dBFS": clicks,
    }
    return {name: signal.astype(np.float32) for name, signal in signals.items()}


def probe(subject: Subject, codebooks: Iterable[int]) -> Iterator[Probe]:
    """What becomes of each of the probe signals, with each number of codebooks."""
    signals = probe_signals(subject.codec.sample_rate)
    codes = {name: subject.encode(signal) for name, signal in signals.items()}
    for books in codebooks:
        for name, signal in signals.items():
            decoded = subject.decode(codes[name][:, :books])
            finite = bool(np.isfinite(decoded).all())
            before, after = _levels_db(signal), _levels_db(decoded)
            changes = [b - a if signal.any() else None for a, b in zip(before, after, strict=True)]
            yield Probe(subject.name, books, name, finite, *after, *changes)


def _levels_db(signal: Audio) -> tuple[float, float]:
    """Peak and RMS in dB of full scale, down to -120."""
    signal = signal.astype(np.float64)
    levels = float(np.abs(signal).max()), float(np.sqrt(np.mean(signal**2)))
    peak, rms = (20 * math.log10(max(level, 1e-6)) for level in levels)
    return peak, rms


def compare_pieces(subject: Subject, clips: Sequence[Clip], codebooks: int) -> Pieces:
    """The first seconds of some clips, decoded in pieces of about 20 ms and at once."""
    rate = float(subject.codec.spec.output.rate)
    frames = max(1, round(PIECE_SECONDS * rate))
    seconds = largest = 0.0
    for clip in clips[:3]:
        codes = subject.codes(clip)[:, :codebooks, : round(PIECED_SECONDS * rate)]
        whole, pieced = subject.decode(codes), subject.decode_pieces(codes, frames)
        seconds += len(whole) / subject.codec.sample_rate
        same = whole.shape == pieced.shape
        largest = max(largest, float(np.abs(whole - pieced).max()) if same else math.inf)
    return Pieces(subject.name, codebooks, frames / rate, seconds, largest)


@dataclass(slots=True)
class Bench:
    """The clips, and everything that measures them.

    heard  What Whisper made of the originals, by clip.
    """

    clips: list[Clip]
    visqol: Visqol | None = None
    whisper: Whisper | None = None
    heard: dict[str, str] = field(default_factory=dict)

    def listen(self) -> None:
        """Transcribes the originals."""
        if self.whisper is not None:
            turns = _shown("Whisper on the originals", self.clips)
            self.heard = {clip.name: self.whisper(clip.at(RATE)) for clip in turns}

    def evaluate(self, condition: Condition) -> Result:
        """All clips through `condition`."""
        utterances, rates = [], []
        for clip in _shown(str(condition), self.clips):
            decoded, kbps = condition.run(clip)
            try:
                utterances.append(self._utterance(clip, decoded))
            except InputError as error:
                raise InputError(f"{condition}, {clip.name}: {error}") from error
            rates.append(kbps)
        measures = {
            name: estimate([utterance[name] for utterance in utterances])
            for name in MEASURES
            if name in utterances[0]
        }
        if self.whisper is not None:
            errors, words = ([u[key] for u in utterances] for key in ("word_errors", "words"))
            measures["wer"] = estimate(errors, words)
        kbps = float(np.mean(rates))
        return Result(
            condition.codec, condition.codebooks, condition.kbps, kbps, measures, utterances
        )

    def _utterance(self, clip: Clip, decoded: Audio) -> dict[str, Any]:
        reference = clip.at(RATE)
        decoded = fitted(decoded, len(reference))
        values: dict[str, Any] = {"clip": clip.name, **measure(reference, decoded)}
        if self.visqol is not None:
            values["visqol"] = self.visqol(reference, decoded)
        values["lag_samples"] = lag_samples(reference, decoded)
        if self.whisper is not None:
            text = self.whisper(decoded)
            errors, words = word_errors(self.heard[clip.name], text)
            values |= {"word_errors": errors, "words": words, "transcript": text}
        return values


def run(
    bench: Bench,
    subjects: Sequence[Subject],
    codebooks: Sequence[int],
    opus_kbps: Sequence[float],
    report: Report,
) -> None:
    """Measures everything into `report`, bit by bit, so that an interrupted run has something."""
    bench.listen()
    conditions = [c for subject in subjects for c in subject.conditions(codebooks)]
    for kbps in opus_kbps:
        conditions.append(Condition("Opus", kbps, None, partial(opus, kbps=kbps)))
    for condition in conditions:
        result = bench.evaluate(condition)
        report.results.append(result)
        report.notes += _remarks(str(condition), result)
    for subject in subjects:
        had = [books for books in codebooks if books <= subject.books]
        report.books += codebook_use(subject, bench.clips)
        report.probes += probe(subject, sorted({min(had), max(had)}))
        report.pieces.append(compare_pieces(subject, bench.clips, max(had)))


def _remarks(name: str, result: Result) -> Iterator[str]:
    for key, value in result.measures.items():
        if value.skipped:
            heading = MEASURES[key][0]
            yield f"{name}: {value.skipped} utterances have no {heading}: too little speech"
    if abs(result.kbps / result.nominal_kbps - 1) > TOLERATED_RATE_ERROR:
        yield f"{name}: its packets make {result.kbps:.2f} kbit/s"
    lag = float(np.median([utterance["lag_samples"] for utterance in result.utterances]))
    if abs(lag) > TOLERATED_LAG_SAMPLES:
        yield (
            f"{name}: its output correlates best with the input {abs(lag):g} samples "
            f"{'later' if lag > 0 else 'earlier'}: SI-SDR suffers, and STOI"
        )


def _shown(what: str, clips: Sequence[Clip]) -> Iterator[Clip]:
    """The clips, with progress on standard error; one line stays."""
    start, live = time.monotonic(), sys.stderr.isatty()
    for done, clip in enumerate(clips):
        if live:
            print(f"\r{what}: {done} of {len(clips)}\x1b[K", end="", file=sys.stderr, flush=True)
        yield clip
    wall = f"{time.monotonic() - start:.1f} s"
    clear = "\r\x1b[K" * live
    print(f"{clear}{what}: {len(clips)} utterances in {wall}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.speech is None:
        parser.error(NO_SPEECH)
    if not args.models and not args.opus:
        parser.error("nothing to measure: --models and --opus are both empty")
    try:
        _command(args)
    except KeyboardInterrupt:
        return 130
    except StreamencError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _command(args: argparse.Namespace) -> None:
    report, where = Report(), _where()
    # Before hours of work.
    for path in filter(None, (args.out, args.curve)):
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise OutputError(f"cannot write {path}: it is a folder, or its folder takes no files")
    needed = {"pesq": True, "pystoi": True, "jiwer": args.whisper, "matplotlib": args.curve}
    for module in filter(needed.get, needed):
        required(module)
    bench = Bench(read_clips(args.speech, args.seconds, args.limit))
    subjects = [Subject(name, args.device) for name in dict.fromkeys(args.models)]
    codebooks = sorted(set(args.codebooks))
    report.notes += _left_out(args, subjects, codebooks)
    bench.visqol = Visqol() if args.visqol else None
    bench.whisper = Whisper(args.whisper) if args.whisper else None
    try:
        run(bench, subjects, codebooks, sorted(set(args.opus)), report)
    except (KeyboardInterrupt, StreamencError):
        print("\nstopped; what was complete is printed, nothing is written", file=sys.stderr)
        raise
    finally:
        print_report(report)
    if args.curve:
        draw(report, args.curve)
    if args.out:
        settings = {key: str(v) if isinstance(v, Path) else v for key, v in vars(args).items()}
        write_json(args.out, report, {**settings, "threads": torch.get_num_threads()}, where)
    for path in filter(None, (args.out, args.curve)):
        print(f"wrote {path}", file=sys.stderr)


def _left_out(
    args: argparse.Namespace, subjects: Iterable[Subject], codebooks: Sequence[int]
) -> Iterator[str]:
    """What the tables lack, and why. Raises UsageError where a model is left with nothing."""
    if not args.whisper:
        yield "WER is left out: it needs --whisper FOLDER"
    if not args.visqol:
        yield "ViSQOL is left out: --no-visqol"
    for subject in subjects:
        beyond = [books for books in codebooks if books > subject.books]
        if len(beyond) == len(codebooks):
            raise UsageError(
                f"{subject.name} has {subject.books} codebooks; got --codebooks "
                f"{' '.join(map(str, beyond))}"
            )
        if beyond:
            numbers = ", ".join(map(str, beyond))
            yield f"{subject.name} has {subject.books} codebooks: left out are {numbers}"


def _where() -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    where = machine()
    return {**where, "versions": {**where["versions"], **versions}}


def _between(least: float, most: float, unit: str) -> Callable[[str], float]:
    """The type of an option that is a number of `unit`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"got {text!r}; wanted {least:g} to {most:g} {unit}")
        return value

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality",
        description="Measures how good codecs sound on a folder of speech, with Opus beside them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--speech", type=Path, metavar="FOLDER", help="recordings of speech, of any format")
    add(
        "--seconds",
        type=_between(0.5, WHISPER_SECONDS, "seconds"),
        default=8.0,
        metavar="N",
        help="of each, from its start (8)",
    )
    add("--limit", type=count, metavar="N", help="recordings, the first by name (all)")
    add(
        "--models",
        nargs="*",
        default=["nano"],
        metavar="NAME",
        help="whatever streamenc.load takes (nano); none after it: Opus only",
    )
    add(
        "--codebooks",
        nargs="+",
        type=count,
        default=[2, 4, 6, 8, 12, 16],
        metavar="N",
        help="each number is a bitrate (2 4 6 8 12 16)",
    )
    add(
        "--opus",
        nargs="*",
        type=_between(6, 256, "kbit/s"),
        default=[6.0, 8.0, 12.0, 16.0],
        metavar="KBPS",
        help="its bitrates, constant (6 8 12 16); none after it: no Opus",
    )
    add("--whisper", type=Path, metavar="FOLDER", help="transformers' Whisper, to measure the WER")
    add("--no-visqol", dest="visqol", action="store_false", help="leave ViSQOL out, which is slow")
    add("--device", default="cpu", help="where the models run (cpu)")
    add("--out", type=Path, metavar="FILE.json", help="everything, each utterance too")
    add("--curve", type=Path, metavar="FILE.png", help="an image over kbit/s; needs matplotlib")
    return parser


if __name__ == "__main__":
    sys.exit(main())
