"""Codec steps beside the published implementations: the same weights, the same speech, one run.

Codes and samples are compared before anything is timed; what does not agree is not timed.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import streamenc
from bench import peers, signals, weights
from bench.cpu.ways import OURS, PLAIN, Way, loaded, ways
from bench.harness import Contestant, Row, Settings, Table, measure_each
from bench.peers import Step
from streamenc.codec import Codec

TWIN = "streamenc (copy)"
TORCH = Way("", PLAIN)
RATE, FRAME = 24_000, 1920
CHECKED_FRAMES = 25
CLIP_FRAMES = 125  # 10 s, for those that take whole clips only
FILE_FRAMES, QUICK_FILE_FRAMES = 375, 12
# So many steps on end before the next one's turn: a stream's weights are then as warm in the
# caches as beside a little other work, and the turns still meet the same machine.
BLOCK = 10
# Codes may differ on ties, samples by this share of the largest: float32 in another order.
LEAST_AGREEMENT = 0.99
SAMPLE_TOLERANCE = 1e-4
PER_FRAME = "ms per 80 ms frame"
Outputs = np.ndarray[Any, Any]
# A step in one of our ways, or why there is none.
Ours = Callable[[Way], Step | str]


def tables(settings: Settings) -> Iterator[Table]:
    """Those whose title has `settings.only`, one after the other, each with models of its own,
    freed before the next."""
    torch.set_num_threads(settings.threads)
    with torch.inference_mode():
        for title in QUICK_TITLES if settings.quick else TABLES:
            if settings.only in title:
                yield from TABLES[title](settings, title)
                gc.collect()


def mimi_encode(settings: Settings, title: str, codebooks: int) -> list[Table]:
    """One live stream, 80 ms at a time."""
    checkpoint = weights.mimi(settings.folder)

    def ours(way: Way) -> Step | str:
        codec = loaded(str(checkpoint), way, part="encoder")
        return codec if isinstance(codec, str) else codec.stream(codebooks=codebooks).push

    def theirs(peer: Any) -> Step:
        step: Step = peer.encoder(codebooks)
        return step

    run = _Run(settings, _chunks(settings), ours)
    for kind in (peers.Moshi, peers.RustyMimi, peers.TransformersMimi):
        run.add_peer(kind, peers.start(kind, checkpoint), theirs)
    return run.tables(title)


def mimi_decode(settings: Settings, title: str) -> list[Table]:
    """One live stream of 8 codebooks; transformers decodes the whole clip, as it cannot stream."""
    checkpoint = weights.mimi(settings.folder)
    encoder = streamenc.load(str(checkpoint), part="encoder", **PLAIN).stream(codebooks=8)
    codes = [cast(Tensor, encoder.push(chunk)) for chunk in _chunks(settings)]
    del encoder

    def ours(way: Way) -> Step | str:
        codec = loaded(str(checkpoint), way, part="decoder")
        return codec if isinstance(codec, str) else codec.decode_stream().push

    def theirs(peer: Any) -> Step:
        step: Step = peer.decoder(8)
        return step

    run = _Run(settings, codes, ours)
    for kind in (peers.Moshi, peers.RustyMimi):
        run.add_peer(kind, peers.start(kind, checkpoint), theirs)
    offline = peers.TransformersMimi
    run.add_offline(offline, peers.start(offline, checkpoint), "decode", "no streaming decode: ")
    return run.tables(title)


def encodec_encode(settings: Settings, title: str) -> list[Table]:
    """One live stream at 6 kbit/s; the peers encode whole clips, as they cannot stream."""

    def ours(way: Way, hops: int = 6) -> Step | str:
        codec = _encodec(settings, way, "encoder")
        return codec if isinstance(codec, str) else codec.stream(hops=hops, codebooks=8).push

    return _in_hops(settings, title, _chunks(settings), ours, "encode")


def encodec_decode(settings: Settings, title: str) -> list[Table]:
    """The same the other way round."""
    whole = torch.cat(_chunks(settings), dim=-1)
    encoder = cast(Codec, _encodec(settings, TORCH, "encoder"))
    codes = cast(Tensor, encoder.encode(whole, codebooks=8))

    def ours(way: Way, hops: int = 6) -> Step | str:
        codec = _encodec(settings, way, "decoder")
        return codec if isinstance(codec, str) else codec.decode_stream(hops=hops).push

    return _in_hops(settings, title, list(torch.split(codes, 6, dim=-1)), ours, "decode")


def _in_hops(
    settings: Settings, title: str, inputs: Sequence[Tensor], ours: Callable[..., Any], method: str
) -> list[Table]:
    """In steps of 80 ms, and in six of a hop each; the peers by whole clips."""
    run = _Run(settings, inputs, ours, "one step of 6 hops")
    run.add_ways([TORCH, *run.ways], partial(ours, hops=1), "hop by hop")
    checkpoint = weights.encodec(settings.folder)
    for kind in (peers.Encodec, peers.TransformersEncodec):
        run.add_offline(kind, peers.start(kind, checkpoint), method, "no streaming: ")
    return run.tables(title)


def nano(settings: Settings, title: str, side: str) -> list[Table]:
    """One live stream at 6 kbit/s, 20 ms at a time: what it takes of one core.

    side  "encode", "decode", or "both": what a frame takes to codes and back.
    """
    codec = streamenc.load("nano", **PLAIN)
    rate, frame = codec.sample_rate, codec.spec.hop
    frames = max(settings.frames, QUICK_FILE_FRAMES)
    audio = torch.from_numpy(signals.speech(rate, frames * frame))[None, None]
    inputs = list(torch.split(audio, frame, dim=-1))
    if side == "decode":
        codes = cast(Tensor, codec.encode(audio, codebooks=12))
        inputs = list(torch.split(codes, 1, dim=-1))
    part = {"encode": "encoder", "decode": "decoder", "both": "both"}[side]

    def ours(way: Way) -> Step | str:
        codec = loaded("nano", way, part=part)
        if isinstance(codec, str):
            return codec
        if side == "encode":
            return codec.stream(codebooks=12).push
        if side == "decode":
            return codec.decode_stream().push
        encode, decode = codec.stream(codebooks=12).push, codec.decode_stream().push
        return lambda chunk: decode(encode(chunk))

    return _Run(settings, inputs, ours).tables(title, "ms per 20 ms frame")


def mimi_files(settings: Settings, title: str) -> list[Table]:
    """A whole file with 8 codebooks."""
    checkpoint = weights.mimi(settings.folder)

    def load(way: Way) -> Codec | str:
        return loaded(str(checkpoint), way, part="encoder")

    return _files(settings, title, load, (peers.Moshi, peers.TransformersMimi), checkpoint)


def encodec_files(settings: Settings, title: str) -> list[Table]:
    """A whole file at 6 kbit/s, 8 codebooks."""
    checkpoint = weights.encodec(settings.folder)
    load = partial(_encodec, settings, part="encoder")
    kinds = (peers.Encodec, peers.TransformersEncodec)
    return _files(settings, title, load, kinds, checkpoint)


def _files(
    settings: Settings,
    title: str,
    load: Callable[[Way], Codec | str],
    kinds: Sequence[Any],
    checkpoint: Path,
) -> list[Table]:
    """Whole files run in torch in all our ways, on the weights that the way has: so compiled int16
    stands here for those alone."""
    frames = QUICK_FILE_FRAMES if settings.quick else FILE_FRAMES
    audio = torch.from_numpy(signals.speech(RATE, frames * FRAME))[None, None]
    length = f"{frames * FRAME / RATE:g} s"
    codec, twin = cast(Codec, load(TORCH)), cast(Codec, load(TORCH))
    expected = np.asarray(codec.encode(audio, codebooks=8))
    contestants = [Contestant(OURS, lambda _: codec.encode(audio, codebooks=8))]
    found, absent = ways(settings)
    absent = [row for row in absent if "compiled, int16" in row.name]
    others: list[tuple[str, Any, Any]] = []
    for way in found:
        if way.how == "compiled, int16":
            compiled = load(way)
            how = {} if isinstance(compiled, str) else {"codebooks": 8}
            others.append((way.name, compiled, how))
    others += [(kind.name, peers.start(kind, checkpoint), {}) for kind in kinds]
    for name, other, how in others:
        if isinstance(other, str):
            absent.append(Row(name, note=other))
            continue
        encode = partial(other.encode, audio, **how)
        equal = agreement(np.asarray(encode()), expected)
        if equal < LEAST_AGREEMENT:
            absent.append(_disagrees(name, equal))
            continue

        def step(_: int, encode: Callable[[], Any] = encode) -> Any:
            return encode()

        contestants.append(Contestant(name, step, agreement=equal))
    return measure_each(
        settings.busy,
        title,
        f"ms per {length}",
        contestants,
        reference=OURS,
        rounds=1 if settings.quick else 4,
        warmup=0,
        twin=Contestant(TWIN, lambda _: twin.encode(audio, codebooks=8)),
        absent=absent,
        threads=settings.threads,
    )


TABLES: dict[str, Callable[[Settings, str], list[Table]]] = {
    "Mimi encode, 8 codebooks, one stream": partial(mimi_encode, codebooks=8),
    "Mimi encode, 32 codebooks, one stream": partial(mimi_encode, codebooks=32),
    "Mimi decode, 8 codebooks, one stream": mimi_decode,
    "Mimi encode, 8 codebooks, a file": mimi_files,
    "EnCodec 24 kHz encode, 6 kbit/s, one stream": encodec_encode,
    "EnCodec 24 kHz decode, 6 kbit/s, one stream": encodec_decode,
    "EnCodec 24 kHz encode, 8 codebooks, a file": encodec_files,
    "nano encode, 12 codebooks, one stream": partial(nano, side="encode"),
    "nano decode, 12 codebooks, one stream": partial(nano, side="decode"),
    "nano encode and decode, 12 codebooks, one stream": partial(nano, side="both"),
}
# Every way of measuring once, every peer once.
QUICK_TITLES = (
    "Mimi encode, 8 codebooks, one stream",
    "Mimi decode, 8 codebooks, one stream",
    "EnCodec 24 kHz encode, 6 kbit/s, one stream",
    "EnCodec 24 kHz encode, 8 codebooks, a file",
    "nano encode and decode, 12 codebooks, one stream",
)


class _Run:
    """The contestants of one table. All start with the same inputs, on which they are compared."""

    def __init__(
        self, settings: Settings, inputs: Sequence[Tensor], ours: Ours, note: str = ""
    ) -> None:
        self._settings = settings
        self._inputs = inputs
        self._checked = min(CHECKED_FRAMES, settings.frames)
        step, twin = ours(TORCH), ours(TORCH)
        assert not isinstance(step, str) and not isinstance(twin, str)
        self._expected = self._first(step)
        self._contestants = [self._contestant(OURS, step, note=note)]
        self._first(twin)
        self._twin = self._contestant(TWIN, twin)
        self.ways, self._absent = ways(settings)
        self.add_ways(self.ways, ours, note=note)

    def add_ways(self, some: Sequence[Way], ours: Ours, how: str = "", note: str = "") -> None:
        """Ways of our own.

        how   What else there is to them, for their names.
        note  The same for their notes.
        """
        for way in some:
            name = ", ".join(filter(None, (way.name, how)))
            step = ours(way)
            if isinstance(step, str):
                self._absent.append(Row(name, note=step))
            else:
                self._add_ours(name, step, note)

    def _add_ours(self, name: str, step: Step, note: str) -> None:
        first = self._first(step)
        equal = None
        if np.issubdtype(first.dtype, np.floating):
            both = min(first.shape[-1], self._expected.shape[-1])  # of other steps, other ends
            ours, theirs = self._expected[..., :both], first[..., :both]
            far = np.abs(theirs - ours).max() / np.abs(ours).max()
            note = "; ".join(filter(None, (note, f"samples within {far:.0e} of the loudest")))
        else:
            equal = agreement(first, self._expected)
        self._contestants.append(self._contestant(name, step, agreement=equal, note=note))

    def add_peer(self, kind: Any, peer: Any, start: Callable[[Any], Step]) -> None:
        """A peer that streams."""
        if isinstance(peer, str):
            self._absent.append(Row(kind.name, note=peer))
            return
        step = start(peer)
        equal = agreement(self._first(step), self._expected)
        if equal < LEAST_AGREEMENT:
            self._absent.append(_disagrees(kind.name, equal))
        else:
            self._contestants.append(self._contestant(kind.name, step, agreement=equal))

    def add_offline(self, kind: Any, peer: Any, method: str, why: str) -> None:
        """A peer that takes whole clips: timed on one of 10 s, now and then, per frame."""
        if isinstance(peer, str):
            self._absent.append(Row(kind.name, note=peer))
            return
        call: Step = getattr(peer, method)
        frames = min(CLIP_FRAMES, len(self._inputs))
        clip = torch.cat(list(self._inputs[:frames]), dim=-1)
        equal = agreement(call(clip).numpy(), self._expected)
        if equal < LEAST_AGREEMENT:
            self._absent.append(_disagrees(kind.name, equal))
            return
        self._contestants.append(
            Contestant(
                kind.name,
                lambda _: call(clip),
                every=max(1, self._settings.frames // 10),
                units=frames,
                note=f"{why}a whole clip of {frames * FRAME / RATE:.1f} s, per frame",
                agreement=equal,
            )
        )

    def tables(self, title: str, unit: str = PER_FRAME) -> list[Table]:
        return measure_each(
            self._settings.busy,
            title,
            unit,
            self._contestants,
            reference=OURS,
            rounds=self._settings.frames,
            warmup=min(BLOCK, self._settings.frames),
            twin=self._twin,
            absent=self._absent,
            threads=self._settings.threads,
            block=BLOCK,
        )

    def _first(self, step: Step) -> Outputs:
        outputs = [np.asarray(step(chunk)) for chunk in self._inputs[: self._checked]]
        return np.concatenate(outputs, axis=-1)

    def _contestant(self, name: str, step: Step, **more: Any) -> Contestant:
        inputs, first = self._inputs, self._checked
        return Contestant(name, lambda i: step(inputs[(first + i) % len(inputs)]), **more)


def agreement(theirs: Outputs, ours: Outputs) -> float:
    """The share of our codes that equal theirs, or of our samples; theirs may go on for longer."""
    theirs = theirs[..., : ours.shape[-1]]
    if theirs.shape != ours.shape:
        return 0.0
    if not np.issubdtype(ours.dtype, np.floating):
        return float(np.mean(theirs == ours))
    return float(np.mean(np.abs(theirs - ours) <= SAMPLE_TOLERANCE * np.abs(ours).max()))


def _disagrees(name: str, equal: float) -> Row:
    note = "not timed: its output is not ours"
    return Row(name, agreement=equal, note=note)


def _encodec(settings: Settings, way: Way, part: str) -> Codec | str:
    return loaded(f"encodec:{weights.encodec(settings.folder)}", way, part=part)


def _chunks(settings: Settings) -> list[Tensor]:
    """80 ms of speech each, (1, 1, 1920)."""
    frames = max(settings.frames, QUICK_FILE_FRAMES)
    audio = torch.from_numpy(signals.speech(RATE, frames * FRAME))[None, None]
    return list(torch.split(audio, FRAME, dim=-1))
