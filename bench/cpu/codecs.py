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
from bench.harness import Contestant, Row, Settings, Table, measure
from bench.peers import Step
from streamenc.codec import Codec

OURS, TWIN = "streamenc", "streamenc (copy)"
RATE, FRAME = 24_000, 1920
CHECKED_FRAMES = 25
CLIP_FRAMES = 125  # 10 s, for those that take whole clips only
FILE_FRAMES, QUICK_FILE_FRAMES = 750, 12
# Codes may differ on ties, samples by this share of the largest: float32 in another order.
LEAST_AGREEMENT = 0.99
SAMPLE_TOLERANCE = 1e-4
PER_FRAME = "ms per 80 ms frame"
Outputs = np.ndarray[Any, Any]


def tables(settings: Settings) -> Iterator[Table]:
    """One table after the other, each with models of its own, freed before the next."""
    torch.set_num_threads(settings.threads)
    with torch.inference_mode():
        for table in QUICK_TABLES if settings.quick else TABLES:
            yield table(settings)
            gc.collect()


def mimi_encode(settings: Settings, codebooks: int) -> Table:
    """One live stream, 80 ms at a time."""
    checkpoint = weights.mimi(settings.folder)
    chunks = _chunks(settings)

    def ours() -> Step:
        codec = streamenc.load(str(checkpoint), part="encoder")
        return codec.stream(codebooks=codebooks).push

    def theirs(peer: Any) -> Step:
        step: Step = peer.encoder(codebooks)
        return step

    run = _Run(settings, chunks, ours)
    for how, options in _in_onnx(settings):
        codec = streamenc.load(str(checkpoint), part="encoder", **options)
        run.add_ours(how, codec.stream(codebooks=codebooks).push)
    for kind in (peers.Moshi, peers.RustyMimi, peers.TransformersMimi):
        run.add_peer(kind, peers.start(kind, checkpoint), theirs)
    return run.table(f"Mimi encode, {codebooks} codebooks, one stream")


def mimi_decode(settings: Settings) -> Table:
    """One live stream of 8 codebooks; transformers decodes the whole clip, as it cannot stream."""
    checkpoint = weights.mimi(settings.folder)
    encoder = streamenc.load(str(checkpoint), part="encoder").stream(codebooks=8)
    codes = [cast(Tensor, encoder.push(chunk)) for chunk in _chunks(settings)]
    del encoder

    def ours() -> Step:
        return streamenc.load(str(checkpoint), part="decoder").decode_stream().push

    def theirs(peer: Any) -> Step:
        step: Step = peer.decoder(8)
        return step

    run = _Run(settings, codes, ours)
    for how, options in _in_onnx(settings):
        codec = streamenc.load(str(checkpoint), part="decoder", **options)
        run.add_ours(how, codec.decode_stream().push)
    for kind in (peers.Moshi, peers.RustyMimi):
        run.add_peer(kind, peers.start(kind, checkpoint), theirs)
    offline = peers.TransformersMimi
    run.add_offline(offline, peers.start(offline, checkpoint), "decode", "no streaming decode: ")
    return run.table("Mimi decode, 8 codebooks, one stream")


def encodec_encode(settings: Settings) -> Table:
    """One live stream at 6 kbit/s; the peers encode whole clips, as they cannot stream."""
    checkpoint = weights.encodec(settings.folder)

    def ours() -> Step:
        return _encodec(settings, "encoder").stream(hops=6, codebooks=8).push

    run = _Run(settings, _chunks(settings), ours, "one step of 6 hops")
    run.add_ours("hop by hop", _encodec(settings, "encoder").stream(codebooks=8).push)
    for how, options in _in_onnx(settings):
        codec = _encodec(settings, "encoder", **options)
        run.add_ours(how, codec.stream(hops=6, codebooks=8).push, "one step of 6 hops")
        run.add_ours(f"{how}, hop by hop", codec.stream(codebooks=8).push)
    for kind in (peers.Encodec, peers.TransformersEncodec):
        run.add_offline(kind, peers.start(kind, checkpoint), "encode", "no streaming: ")
    return run.table("EnCodec 24 kHz encode, 6 kbit/s, one stream")


def encodec_decode(settings: Settings) -> Table:
    """The same the other way round."""
    checkpoint = weights.encodec(settings.folder)
    whole = torch.cat(_chunks(settings), dim=-1)
    codes = cast(Tensor, _encodec(settings, "encoder").encode(whole, codebooks=8))
    pieces = list(torch.split(codes, 6, dim=-1))

    def ours() -> Step:
        return _encodec(settings, "decoder").decode_stream(hops=6).push

    run = _Run(settings, pieces, ours, "one step of 6 hops")
    run.add_ours("hop by hop", _encodec(settings, "decoder").decode_stream().push)
    for how, options in _in_onnx(settings):
        codec = _encodec(settings, "decoder", **options)
        run.add_ours(how, codec.decode_stream(hops=6).push, "one step of 6 hops")
        run.add_ours(f"{how}, hop by hop", codec.decode_stream().push)
    for kind in (peers.Encodec, peers.TransformersEncodec):
        run.add_offline(kind, peers.start(kind, checkpoint), "decode", "no streaming: ")
    return run.table("EnCodec 24 kHz decode, 6 kbit/s, one stream")


def nano(settings: Settings, side: str) -> Table:
    """One live stream at 6 kbit/s, 20 ms at a time: what it takes of one core."""
    codec = streamenc.load("nano")
    rate, frame = codec.sample_rate, codec.spec.hop
    frames = max(settings.frames, QUICK_FILE_FRAMES)
    audio = torch.from_numpy(signals.speech(rate, frames * frame))[None, None]
    inputs = list(torch.split(audio, frame, dim=-1))
    if side == "decode":
        codes = cast(Tensor, codec.encode(audio, codebooks=12))
        inputs = list(torch.split(codes, 1, dim=-1))

    def ours() -> Step:
        return (codec.stream(codebooks=12) if side == "encode" else codec.decode_stream()).push

    run = _Run(settings, inputs, ours)
    for how, options in _in_onnx(settings):
        exported = streamenc.load("nano", **options)
        encodes = side == "encode"
        stream = exported.stream(codebooks=12) if encodes else exported.decode_stream()
        run.add_ours(how, stream.push)
    return run.table(f"nano {side}, 12 codebooks, one stream", "ms per 20 ms frame")


def mimi_files(settings: Settings) -> Table:
    """A whole file with 8 codebooks."""
    checkpoint = weights.mimi(settings.folder)

    def ours() -> Step:
        codec = streamenc.load(str(checkpoint), part="encoder")
        return lambda audio: codec.encode(audio, codebooks=8)

    return _files("Mimi", settings, ours, (peers.Moshi, peers.TransformersMimi), checkpoint)


def encodec_files(settings: Settings) -> Table:
    """A whole file at 6 kbit/s, 8 codebooks."""
    checkpoint = weights.encodec(settings.folder)

    def ours() -> Step:
        codec = _encodec(settings, "encoder")
        return lambda audio: codec.encode(audio, codebooks=8)

    kinds = (peers.Encodec, peers.TransformersEncodec)
    return _files("EnCodec 24 kHz", settings, ours, kinds, checkpoint)


def _files(
    what: str,
    settings: Settings,
    ours: Callable[[], Step],
    kinds: Sequence[Any],
    checkpoint: Path,
) -> Table:
    frames = QUICK_FILE_FRAMES if settings.quick else FILE_FRAMES
    audio = torch.from_numpy(signals.speech(RATE, frames * FRAME))[None, None]
    length = f"{frames * FRAME / RATE:g} s"
    step, twin = ours(), ours()
    expected = np.asarray(step(audio))
    contestants = [Contestant(OURS, lambda _: step(audio))]
    absent = []
    for kind in kinds:
        peer = peers.start(kind, checkpoint)
        if isinstance(peer, str):
            absent.append(Row(kind.name, note=peer))
            continue
        equal = agreement(np.asarray(peer.encode(audio)), expected)
        if equal < LEAST_AGREEMENT:
            absent.append(_disagrees(kind.name, equal))
            continue

        def theirs(_: int, peer: Any = peer) -> Any:
            return peer.encode(audio)

        contestants.append(Contestant(kind.name, theirs, agreement=equal))
    return measure(
        f"{what} encode, 8 codebooks, a file of {length}",
        f"ms per {length}",
        contestants,
        reference=OURS,
        rounds=1 if settings.quick else 4,
        warmup=0,
        twin=Contestant(TWIN, lambda _: twin(audio)),
        absent=absent,
        threads=settings.threads,
    )


TABLES: tuple[Callable[[Settings], Table], ...] = (
    partial(mimi_encode, codebooks=8),
    partial(mimi_encode, codebooks=32),
    mimi_decode,
    mimi_files,
    encodec_encode,
    encodec_decode,
    encodec_files,
    partial(nano, side="encode"),
    partial(nano, side="decode"),
)
# Every way of measuring once, every peer once.
QUICK_TABLES = (TABLES[0], mimi_decode, encodec_encode, encodec_files, *TABLES[-2:])


class _Run:
    """The contestants of one table. All start with the same inputs, on which they are compared."""

    def __init__(
        self, settings: Settings, inputs: Sequence[Tensor], ours: Callable[[], Step], note: str = ""
    ) -> None:
        self._settings = settings
        self._inputs = inputs
        self._checked = min(CHECKED_FRAMES, settings.frames)
        step = ours()
        self._expected = self._first(step)
        self._contestants = [self._contestant(OURS, step, note=note)]
        twin = ours()
        self._first(twin)
        self._twin = self._contestant(TWIN, twin)
        self._absent: list[Row] = []

    def add_ours(self, how: str, step: Step, note: str = "") -> None:
        """Another way of our own."""
        first = self._first(step)
        name = f"{OURS}, {how}"
        if np.issubdtype(first.dtype, np.floating):
            both = min(first.shape[-1], self._expected.shape[-1])  # of other steps, other ends
            ours, theirs = self._expected[..., :both], first[..., :both]
            far = np.abs(theirs - ours).max() / np.abs(ours).max()
            note = "; ".join(filter(None, (note, f"samples within {far:.0e} of the loudest")))
            equal = None
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

    def table(self, title: str, unit: str = PER_FRAME) -> Table:
        return measure(
            title,
            unit,
            self._contestants,
            reference=OURS,
            rounds=self._settings.frames,
            warmup=2,
            twin=self._twin,
            absent=self._absent,
            threads=self._settings.threads,
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


def _in_onnx(settings: Settings, *, quick: bool = False) -> Iterator[tuple[str, dict[str, str]]]:
    """Other ways of our own to run the same weights, and how to load them.

    quick  One of them in a quick run, too: exporting a step of a large model takes ten seconds.
    """
    precisions = ("float32", "int16", "int8")
    if settings.quick:
        precisions = ("float32",) if quick else ()
    for precision in precisions:
        yield f"ONNX step, {precision}", {"backend": "onnx", "precision": precision}


def _encodec(settings: Settings, part: Any, **options: Any) -> Codec:
    return streamenc.load(f"encodec:{weights.encodec(settings.folder)}", part=part, **options)


def _chunks(settings: Settings) -> list[Tensor]:
    """80 ms of speech each, (1, 1, 1920)."""
    frames = max(settings.frames, QUICK_FILE_FRAMES)
    audio = torch.from_numpy(signals.speech(RATE, frames * FRAME))[None, None]
    return list(torch.split(audio, FRAME, dim=-1))
