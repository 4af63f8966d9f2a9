"""What video costs as a stream, and what restarts cost: Cosmos CV8x8x8 beside diffusers.

Both load one folder of random weights of the published size. Latents and frames are compared before
anything is timed. A stream takes a frame, then 8 at a time, and is compared per frame with the
published model over the whole clip at once, in turns. The published command cuts video into clips
of 17 frames instead, each encoded by itself; what that does at the seams is shown against the exact
latents, those of the whole clip. With random weights that shows that there is an error, and not how
large it is in the trained model: `--cosmos FOLDER` takes those.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import streamenc
from bench import signals, weights
from bench.gpu.timing import relative_error
from bench.harness import Contestant, Row, Settings, Table, measure
from streamenc import state as states
from streamenc.models.model import Model
from streamenc.stream import Stream

THEIRS, OURS = "diffusers, the whole clip", "streamenc, streamed"
PER_FRAME = "ms per frame"
TOLERANCE = 1e-5
HOP, CLIP, CLIP_LATENTS = 8, 17, 3
# Frames after a seam that are looked at: the first ones, the middle and the last of a clip.
OFFSETS = (1, 2, 4, 8, 16)
CONTEXT = 16
CONTEXTS = (4, 8, 16)
TARGET = 1.05
WIDE = (720, 1280)
WARMUP = 1
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured.

    side    Pixels of height and width; `small_side`: where many frames are needed.
    wide    Height and width of the large images; None for none.
    frames  Of the clip that is timed, 1 + 8n; `wide_frames`: of the large one.
    rounds, wide_rounds  Of timing.
    latents  Of the clip on which windows are compared with the whole.
    long    Frames of the stream whose memory is looked at.
    """

    side: int = 256
    small_side: int = 128
    wide: tuple[int, int] | None = WIDE
    frames: int = 33
    wide_frames: int = 9
    rounds: int = 5
    wide_rounds: int = 3
    latents: int = 24
    long: int = 1000
    contexts: tuple[int, ...] = CONTEXTS

    @classmethod
    def of(cls, settings: Settings) -> Scale:
        if settings.quick:
            return cls(16, 16, (16, 24), 17, 9, 1, 1, 6, 49, (2, 4))
        rounds = max(1, settings.frames // 50)
        wide = None if settings.small else WIDE
        return cls(rounds=rounds, wide_rounds=max(1, rounds * 3 // 5), wide=wide)


def tables(settings: Settings) -> Iterator[Table]:
    """Cost of encoding and of its steps, of large images, of decoding; seams, windows, memory.

    settings.frames  A fiftieth of them is the number of rounds.
    settings.video   A clip to encode; None makes moving images.
    settings.cosmos  A diffusers folder of CV8x8x8; None takes random weights of its size.
    """
    torch.set_num_threads(settings.threads)
    bench = Bench(settings)
    with torch.inference_mode():
        for table in bench.tables():
            yield table
            gc.collect()


class Bench:
    """Both implementations of one checkpoint.

    peer  diffusers' model, or why there is none.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.scale = Scale.of(settings)
        self.folder = settings.cosmos or weights.cosmos(settings.folder, small=settings.quick)
        small = settings.quick and not settings.cosmos
        self.what = "a small Cosmos 8x8x8" if small else "Cosmos CV8x8x8"
        self.of_weights = f"weights of {self.folder.name}" if settings.cosmos else "random weights"
        hop = self.encoder().spec.hop
        if hop != HOP:
            raise SystemExit(f"{self.folder.name} has a latent every {hop} frames; wanted CV8x8x8")
        self.peer: Any = _diffusers(self.folder)

    def tables(self) -> Iterator[Table]:
        """One after the other."""
        side = self.scale.side
        yield from self._encode(side, side, self.scale.frames, self.scale.rounds)
        if self.scale.wide:
            height, width = self.scale.wide
            yield from self._encode(
                height, width, self.scale.wide_frames, self.scale.wide_rounds, few=True
            )
        yield self._decode()
        yield self._seams()
        yield self._windows()
        yield self._memory()

    def encoder(self, **options: Any) -> Model:
        return streamenc.load(self.folder, part="encoder", **options).encoder

    def decoder(self, **options: Any) -> Model:
        return streamenc.load(self.folder, part="decoder", **options).decoder

    def clip(self, frames: int, height: int, width: int) -> Tensor:
        """(1, 3, frames, height, width), floats in [-1, 1]."""
        images = signals.video(frames, height, width, self.settings.video)
        return torch.from_numpy(images)[None].float() / 127.5 - 1

    def whole_encode(self) -> Call:
        """The published model over whole clips: diffusers, or ours, which the tests prove equal."""
        if not isinstance(self.peer, str):
            return lambda x: self.peer.encode(x).latent_dist.mode()
        encoder = self.encoder(limit=100)
        return lambda x: Streamed(encoder, x, all_at_once=True)(0)

    def whole_decode(self) -> Call:
        if not isinstance(self.peer, str):
            return lambda z: self.peer.decode(z).sample
        decoder = self.decoder(limit=100)
        return lambda z: Streamed(decoder, z, all_at_once=True)(0)

    def _encode(
        self, height: int, width: int, frames: int, rounds: int, *, few: bool = False
    ) -> Iterator[Table]:
        """Two tables: whole clips by turns, and the steps of our streams meanwhile.

        few  Without the rows that say nothing more about large images.
        """
        limit = 1 + (frames - 1) // HOP
        # Restarts take whole clips of 17 frames, the published model 1 + 8n.
        restarted = frames + 1 if not few else 0
        images = self.clip(max(frames, restarted), height, width)
        x = images[:, :, :frames]
        encoder = self.encoder(limit=limit)
        window = self.encoder(mode="window", context=4 if few else CONTEXT)
        streams = {
            OURS: Streamed(encoder, x),
            "streamenc, streamed, mode=window": Streamed(window, x),
        }
        if not few:
            streams["streamenc, streamed, 2 hops a step"] = Streamed(encoder, x, hops=2)
        streams["streamenc, the whole clip"] = Streamed(encoder, x, all_at_once=True)
        run = Run(self, x, streams, self.whole_encode(), "latents")
        if restarted:
            reference = Streamed(self.encoder(mode="reference"), images)
            run.add_restarts(images, reference)
        return run.tables(f"{self.what} encode, {width} x {height}, {frames} frames", rounds)

    def _decode(self) -> Table:
        frames, side = self.scale.frames, self.scale.side
        z = self.whole_encode()(self.clip(frames, side, side))
        decoder = self.decoder(limit=z.shape[2])
        streams = {
            OURS: Streamed(decoder, z),
            "streamenc, streamed, mode=window": Streamed(
                self.decoder(mode="window", context=CONTEXT), z
            ),
            "streamenc, streamed, 2 hops a step": Streamed(decoder, z, hops=2),
            "streamenc, the whole clip": Streamed(decoder, z, all_at_once=True),
        }
        run = Run(self, z, streams, self.whole_decode(), "frames")
        return next(
            run.tables(
                f"{self.what} decode, {side} x {side}, {frames} frames",
                max(1, self.scale.rounds * 3 // 5),
            )
        )

    def _seams(self) -> Table:
        """Three clips of 17 frames, each by itself, against the whole."""
        side = self.scale.side
        x = self.clip(3 * CLIP, side, side)
        encode, decode = self.whole_encode(), self.whole_decode()
        after: dict[int, list[float]] = {place: [] for place in range(1, CLIP_LATENTS)}
        decoded: dict[int, list[float]] = {offset: [] for offset in OFFSETS}
        source: dict[str, dict[int, list[float]]] = {
            way: {offset: [] for offset in (0, *OFFSETS)} for way in ("restarts", "streamed")
        }
        streamed = [0.0]
        for index in (1, 2):
            # A clip's latents stand for other frames than those of the whole: its first one is of
            # a frame alone. The whole is begun later by as much, so that both are of the same.
            start = CLIP * index % HOP
            part = x[:, :, start : CLIP * (index + 1)]
            exact = encode(part)
            ours = Streamed(self.encoder(limit=exact.shape[2]), part)(0)
            alone = encode(x[:, :, CLIP * index : CLIP * (index + 1)])
            first = (CLIP * index - start) // HOP
            for place, errors in after.items():
                of_same = exact[:, :, first + place]
                errors.append(relative_error(alone[:, :, place], of_same))
                streamed.append(relative_error(ours[:, :, first + place], of_same))
            wanted = decode(exact)
            ours = Streamed(self.decoder(limit=exact.shape[2]), ours)(0)
            streamed.append(relative_error(ours, wanted))
            alone, wanted, ours = (y[:, :, -CLIP:] for y in (decode(alone), wanted, ours))
            for offset, found in decoded.items():
                found.append(_psnr(alone[:, :, offset], wanted[:, :, offset]))
            original = part[:, :, -CLIP:]
            for way, frames in (("restarts", alone), ("streamed", ours)):
                for offset, found in source[way].items():
                    found.append(_psnr(frames[:, :, offset], original[:, :, offset]))
        facts: dict[str, Any] = {
            "clips": f"{side} x {side}, {self.of_weights}",
            "latents a frame": f"restarts {CLIP_LATENTS / CLIP:.3f}, streamed {1 / HOP:.3f}",
            "streamed, largest relative error of latents and frames": _short(max(streamed)),
        }
        for place, errors in after.items():
            which = f"{place}. latent of 8 frames after a seam"
            facts[f"restarts, {which}, relative error"] = _short(fmean(errors))
        for offset, found in decoded.items():
            what = f"restarts, {offset}. frame after a seam, decoded, against the exact one"
            facts[what] = f"PSNR {fmean(found):.1f} dB"
        # What random weights decode to is no image.
        for way, by_offset in source.items() if self.settings.cosmos else ():
            for offset, found in by_offset.items():
                what = f"{way}, {offset}. frame after a seam, decoded, against the video"
                facts[what] = f"PSNR {fmean(found):.1f} dB"
        return Table(f"{self.what}, seams of restarts every {CLIP} frames", "", [], facts=facts)

    def _windows(self) -> Table:
        """What a limited context of attention along time changes."""
        side, latents = self.scale.small_side, self.scale.latents
        x = self.clip(1 + HOP * (latents - 1), side, side)
        exact = self.whole_encode()(x)
        facts: dict[str, Any] = {"clip": f"{side} x {side}, {latents} latents, {self.of_weights}"}
        for context in self.scale.contexts:
            ours = Streamed(self.encoder(mode="window", context=context), x)(0)
            errors = [relative_error(ours[:, :, i], exact[:, :, i]) for i in range(latents)]
            within, beyond = errors[:context], errors[context:]
            facts[f"context of {context} latents, relative errors"] = (
                f"within it at most {max(within):.1e}, beyond it {fmean(beyond):.2%} on average, "
                f"at most {max(beyond):.2%}"
            )
        return Table(f"{self.what}, windows against the whole clip", "", [], facts=facts)

    def _memory(self) -> Table:
        """A long stream in a window; and what is reserved for streams of a limit."""
        side, frames = self.scale.small_side, self.scale.long
        frames = 1 + (frames - 1) // HOP * HOP
        video = torch.from_numpy(signals.video(frames, side, side, self.settings.video))[None]
        stream = Stream(self.encoder(mode="window", context=CONTEXT))
        marks = {1 + HOP * round(share * (frames - 1) / HOP) for share in (0.1, 0.25, 0.5, 1)}
        times: list[float] = []
        facts: dict[str, Any] = {"frames": f"{frames} of {side} x {side}, bytes"}
        for part in video.split([1, *[HOP] * ((frames - 1) // HOP)], dim=2):
            start_ns = time.perf_counter_ns()
            stream.push(part)
            if part.shape[2] == HOP:
                times.append((time.perf_counter_ns() - start_ns) / HOP / 1e6)
            if stream.pushed in marks:
                facts[f"window of {CONTEXT}, after {stream.pushed} frames"] = (
                    f"state {states.nbytes(stream.state) / 1e6:.2f} MB, process {_resident()}"
                )
        tenth = max(1, len(times) // 10)
        rows = [
            Row.of("a step of 8 frames, the first tenth of them", times[:tenth]),
            Row.of("the last tenth", times[-tenth:]),
        ]
        for limit in (8, 32, 128):
            stream = Stream(self.encoder(limit=limit))
            stream.push(video[:, :, :1])
            facts[f"mode=offline, limit of {limit} latents"] = (
                f"state {states.nbytes(stream.state) / 1e6:.2f} MB"
            )
        return Table(
            f"{self.what}, memory of a long stream",
            PER_FRAME,
            rows,
            threads=self.settings.threads,
            facts=facts,
        )


class Run:
    """The contestants of one clip: compared first, then timed by turns."""

    def __init__(
        self, bench: Bench, x: Tensor, streams: dict[str, Streamed], whole: Call, what: str
    ) -> None:
        self.bench, self.streams, self.what = bench, streams, what
        self.absent: list[Row] = []
        frames = next(iter(streams.values())).frames
        self.frames = frames
        self.contestants: list[Contestant] = []
        self.reference = OURS
        wanted = whole(x)
        if isinstance(bench.peer, str):
            self.absent.append(Row(THEIRS, note=bench.peer))
        else:
            self.reference = THEIRS
            self.contestants.append(Contestant(THEIRS, lambda _: whole(x), units=frames))
        self.whole, self.x = whole, x
        for name, stream in streams.items():
            self._add(name, stream, relative_error(stream(0), wanted), stream.frames)

    def _add(self, name: str, step: Callable[[int], Any], error: float, frames: int) -> None:
        note = f"{self.what} within {error:.0e}"
        if not error <= TOLERANCE:
            self.absent.append(Row(name, note=f"not timed: {self.what} off by {error:.1e}"))
        else:
            self.contestants.append(Contestant(name, step, units=frames, note=note))

    def add_restarts(self, x: Tensor, ours: Streamed) -> None:
        """Clips of 17 frames, each by itself: theirs and ours."""
        clips = x.split(CLIP, dim=2)
        wanted = torch.cat([self.whole(clip) for clip in clips], dim=2)
        name = "streamenc, mode=reference"
        self._add(name, ours, relative_error(ours(0), wanted), x.shape[2])
        if not isinstance(self.bench.peer, str):

            def theirs(_: int) -> None:
                for clip in clips:
                    self.whole(clip)

            self.contestants.append(
                Contestant("diffusers, clips of 17 frames", theirs, units=x.shape[2])
            )

    def tables(self, title: str, rounds: int) -> Iterator[Table]:
        """The clips, then the steps of those that stream."""
        for stream in self.streams.values():
            stream.forget()
        names = {contestant.name for contestant in self.contestants}
        if self.reference not in names:
            yield Table(title, PER_FRAME, self.absent)
            return
        twin = Contestant(
            "the reference once more",
            next(c.step for c in self.contestants if c.name == self.reference),
            units=self.frames,
        )
        threads = self.bench.settings.threads
        table = measure(
            title,
            PER_FRAME,
            self.contestants,
            reference=self.reference,
            rounds=rounds,
            warmup=WARMUP,
            twin=twin,
            absent=self.absent,
            threads=threads,
        )
        found = {row.name: row.ratio for row in table.rows}
        ratio = found.get(OURS)
        if self.reference == THEIRS and ratio is not None and not self.bench.settings.quick:
            table.facts["streamed over the whole clip, per frame"] = (
                f"{ratio:.3f} (target {TARGET}: {'met' if ratio <= TARGET else 'MISSED'})"
            )
        yield table
        rows = []
        for name, stream in self.streams.items():
            if name in names:
                rows += stream.rows(name)
        yield Table(f"{title}, step by step", PER_FRAME, rows, threads=threads)


class Streamed:
    """A clip through a new stream at each call, which also notes what each step took.

    frames  Of video, that go in or come out.
    """

    def __init__(
        self, model: Model, x: Tensor, *, hops: int = 1, all_at_once: bool = False
    ) -> None:
        self.model, self.hops = model, hops
        spec = model.spec
        length = x.shape[2]
        # Frames go in, or come out.
        self.frames = length if spec.input.kind == "video" else 1 + HOP * (length - 1)
        self._at_once = all_at_once
        rest = length - spec.lead
        size = max(1, hops * spec.hop)
        sizes = [spec.lead, *[size] * (rest // size), rest % size]
        self._parts = [x] if all_at_once else list(x.split([s for s in sizes if s], dim=2))
        self._first: list[float] = []
        self._later: list[float] = []

    def __call__(self, index: int) -> Tensor:
        if self._at_once:
            entered = self.model.before(self._parts[0])
            y = self.model.after(self.model(entered))
            assert isinstance(y, Tensor)
            return y
        stream, outputs = Stream(self.model, hops=self.hops), []
        for number, part in enumerate(self._parts):
            start_ns = time.perf_counter_ns()
            y = stream.push(part)
            assert isinstance(y, Tensor)
            outputs.append(y)
            self._note(number, max(part.shape[2], y.shape[2]), time.perf_counter_ns() - start_ns)
        if stream.pending:
            y = stream.flush()
            assert isinstance(y, Tensor)
            outputs.append(y)
        return torch.cat(outputs, dim=2)

    def _note(self, number: int, frames: int, elapsed_ns: int) -> None:
        (self._later if number else self._first).append(elapsed_ns / frames / 1e6)

    def forget(self) -> None:
        """What steps took so far, and in the warm-up that follows."""
        self._first, self._later = [], []

    def rows(self, name: str) -> list[Row]:
        """Of the first frame alone, and of later steps; without those of the warm-up."""
        if self._at_once:
            return []
        steps = len(self._parts) - 1
        rows = [Row.of(f"{name}: the first frame", self._first[WARMUP:])]
        if steps:
            of = f"steps of {HOP * self.hops} frames"
            rows.append(Row.of(f"{name}: {of}", self._later[WARMUP * steps :]))
        return rows


def _psnr(ours: Tensor, wanted: Tensor) -> float:
    """In dB below the span of what is wanted."""
    span = float(wanted.max() - wanted.min())
    error = float((ours.double() - wanted.double()).pow(2).mean())
    return 10 * math.log10(span**2 / max(error, 1e-30))


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _resident() -> str:
    """Memory that this process holds."""
    path = Path("/proc/self/statm")
    if not path.exists():
        return "unknown"
    return f"{int(path.read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6:.0f} MB"


def _diffusers(folder: Path) -> Any:
    """The published model, or why it is not there."""
    try:
        from diffusers import AutoencoderKLCosmos
        from diffusers.utils import logging
    except ImportError as error:
        return f"not installed: {error.name}"
    logging.set_verbosity_error()
    # As it comes: in the memory format channels_last_3d it takes 1.2 times as long on a CPU.
    return AutoencoderKLCosmos.from_pretrained(
        folder, local_files_only=True, low_cpu_mem_usage=False
    ).eval()
