"""What a second of media costs: live, hop by hop, and at once, beside the published code at once.

The published implementations encode whole clips; most of them cannot do anything else. So the price
of a stream is told against that: `live` steps hop by hop, `at once` is `Codec.encode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch

import streamenc
from bench import encoders
from bench.encoders import Encoder
from bench.harness import Contestant, Row, Settings, Table, measure
from streamenc.codec import Codec
from streamenc.models.model import Model
from streamenc.models.signal import Signal, cat, cut, items, values
from streamenc.stream import Stream
from streamenc.verify import clips
from streamenc.verify.published import Absent, Subject, published, quiet

ROUNDS, QUICK_ROUNDS = 7, 1
# What the table's rows are called.
LIVE, AT_ONCE = "streamenc, live", "streamenc, at once"


def tables(settings: Settings) -> Iterator[Table]:
    """A table for each encoder: ms per second of media, or per image or text."""
    torch.set_num_threads(settings.threads)
    for encoder in encoders.found(settings.only):
        with torch.inference_mode(), quiet():
            yield _table(encoder, settings)


def _table(encoder: Encoder, settings: Settings) -> Table:
    folder = settings.folder / re.sub(r"\W+", "-", encoder.name)
    if not folder.exists():
        folder.mkdir()
        encoder.save(folder)
    part: Any = "encoder" if encoder.part == "encoder" else "both"
    codec = streamenc.load(folder, part=part, **encoder.options)
    given, units, unit = _clip(encoder, codec, settings.quick)
    x = codec.encoder.signal(given)
    model = codec.encoder
    if encoder.part == "decoder":
        model, x = codec.decoder, codec.encode(x)
        given = values(x)
    whole = codec.encode if encoder.part == "encoder" else codec.decode
    contestants = [
        Contestant(AT_ONCE, lambda _: whole(x), units=units),
        Contestant(LIVE, lambda _: _live(model, x), units=units, note=_hops(model)),
    ]
    absent = []
    try:
        peer = published(encoder.family, Subject(str(folder), None, codec, dict(encoder.options)))
        call = peer.encode if encoder.part == "encoder" else peer.decode
        if call is None:
            raise Absent(f"{peer.package} has no such side")
        contestants.append(
            Contestant(f"{peer.package}, at once", lambda _: call(given), units=units)
        )
    except Absent as reason:
        absent.append(Row("published", note=str(reason)))
    table = measure(
        encoder.name,
        f"ms per {unit}",
        contestants,
        reference=AT_ONCE,
        rounds=QUICK_ROUNDS if settings.quick else ROUNDS,
        warmup=1,
        absent=absent,
        threads=settings.threads,
    )
    weights = sum(tensor.numel() for tensor in model.state_dict().values())
    table.facts["weights of this side"] = f"{weights / 1e6:.1f} M"
    return table


def _clip(encoder: Encoder, codec: Codec, quick: bool) -> tuple[Any, int, str]:
    """What is encoded, by how many units times are divided, and what one of these is."""
    spec, seconds = codec.spec, encoder.seconds
    if spec.input.kind == "video":
        frames = 1 if quick else max(1, round(seconds))
        unit = "image"
        if spec.hop > 1:
            unit = "frame of video"
            hops = (
                1
                if quick
                else max(1, round((seconds * float(spec.input.rate) - spec.lead) / spec.hop))
            )
            frames = spec.lead + hops * spec.hop
        image = spec.input.image
        size = encoder.size or (image and (image.size or image.nearest((256, 256)))) or (256, 256)
        return clips.scene(frames, *size)[None], frames, unit
    if spec.input.kind == "text":
        texts = (clips.TEXTS * 10)[: max(1, round(seconds))]
        return texts, len(texts), "text"
    made = clips.clip_for(spec, max(1, round(seconds)))
    return made, max(1, round(seconds)), "second of sound"


def _live(model: Model, x: Signal) -> Signal:
    """As a live stream goes through: the first step, then hop by hop, and the end."""
    stream, start = Stream(model), 0
    outputs: list[Signal] = []
    while start < items(x):
        stop = start + (model.spec.hop if start else model.spec.lead)
        outputs.append(stream.push(cut(x, start, stop)))
        start = stop
    return cat([*outputs, stream.flush()])


def _hops(model: Model) -> str:
    spec = model.spec
    if spec.input.kind in ("video", "text"):
        return f"{spec.hop} a step"
    return f"{1000 * spec.hop / float(spec.input.rate):.4g} ms a step"
