"""What features of speech cost live: HuBERT base by chunks, and in windows that are computed anew.

A window of 2 s every 100 ms is what users do with transformers today. What it gives may look ahead
as far as one likes: the frames that are taken then lie further before the window's end, and the
cost is the same. So chunks of 320 ms are compared with windows whose newest frames look 220 to 320
ms ahead, and chunks of 100 ms with those that look up to 100 ms ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import streamenc
from bench import signals, weights
from bench.cpu.ways import OURS, PLAIN, loaded, ways
from bench.harness import Contestant, Row, Settings, Table, measure
from streamenc import state as states
from streamenc.models.model import Model

RATE = 16_000
UNIT_MS = 100
WINDOW_MS = 2000
# Timed together, so that a time is of whole units: 1.6 s.
STEPS_320 = 5
HOUR_SECONDS = 3600


def tables(settings: Settings) -> Iterator[Table]:
    """Two tables: the cost of 100 ms of audio, and that of a step at the start and after an hour.

    settings.frames  A tenth of them is the number of rounds.
    """
    torch.set_num_threads(settings.threads)
    folder = weights.hubert(settings.folder)
    with torch.inference_mode():
        model = streamenc.load(folder, chunk_ms=320, **PLAIN).encoder
        yield _cost(folder, model, settings)
        yield _hour(model, settings)


def _cost(folder: Path, model: Model, settings: Settings) -> Table:
    wide, wide_twin = Live(model), Live(model)
    short = Live(streamenc.load(folder, chunk_ms=100, **PLAIN).encoder)
    window = torch.from_numpy(signals.speech(RATE, RATE * WINDOW_MS // 1000 + 80))[None]
    windows = {"mode": "sliding", "window_ms": WINDOW_MS, "hop_ms": UNIT_MS}
    sliding = streamenc.load(folder, **windows, **PLAIN).encoder
    ours = Contestant(
        "streamenc, chunks of 320 ms", wide.steps(STEPS_320), units=16, note="looks 0 to 320 ms on"
    )
    contestants = [
        ours,
        Contestant("streamenc, chunks of 100 ms", short.steps(1), note="looks 0 to 100 ms on"),
        Contestant(
            "streamenc, windows of 2 s anew", lambda _: sliding(window[None]), note="mode=sliding"
        ),
    ]
    facts: dict[str, Any] = {}
    found, without = ways(settings)
    # The others of ONNX gain nothing over float32 here.
    found = [way for way in found if way.how not in ("ONNX step, int16", "ONNX step, int8")]
    absent = [replace(row, name=_name(row.name, 320)) for row in without]
    for way in found:
        for chunk, steps, units in ((320, STEPS_320, 16), (100, 1, 1)):
            name = _name(way.name, chunk)
            codec = loaded(str(folder), way, part="encoder", chunk_ms=chunk)
            if isinstance(codec, str):
                absent.append(Row(name, note=codec))
                continue
            codec.encoder.warm_up()
            live = Live(codec.encoder)
            near = _distance(live, Live(model) if chunk == 320 else Live(short.model))
            note = f"within {near:.0e} of torch's"
            contestants.append(Contestant(name, live.steps(steps), units=units, note=note))
    peer = _transformers(folder)
    if isinstance(peer, str):
        absent.append(Row("transformers, windows of 2 s anew", note=peer))
    else:
        apart = (sliding(window[None]) - peer(window)).abs().max() / peer(window).abs().max()
        facts["window by streamenc, largest difference to transformers"] = float(apart)
        contestants.append(Contestant("transformers, windows of 2 s anew", lambda _: peer(window)))
    table = measure(
        "HuBERT base live, 12 layers, random weights",
        "ms per 100 ms of audio",
        contestants,
        reference=ours.name,
        rounds=max(1, settings.frames // 10),
        warmup=2,
        twin=Contestant("streamenc, a second stream", wide_twin.steps(STEPS_320), units=16),
        absent=absent,
        threads=settings.threads,
    )
    p50_ms = {row.name: row.p50_ms for row in table.rows}
    anew = p50_ms.get("transformers, windows of 2 s anew")
    if anew:
        for chunk in (320, 100):
            for how in ("", *(way.how for way in found)):
                cost = p50_ms.get(_name(f"{OURS}, {how}" if how else OURS, chunk))
                if cost is not None:
                    what = f"times cheaper at a look-ahead of {chunk} ms"
                    facts[", ".join(filter(None, (what, how)))] = round(anew / cost, 1)
    p50 = p50_ms[ours.name]
    assert p50 is not None
    facts["times real time, chunks of 320 ms"] = round(UNIT_MS / p50, 1)
    table.facts.update(facts)
    return table


def _name(way: str, chunk_ms: int) -> str:
    """Of a row: of one of our ways, by its name, with chunks of so many milliseconds."""
    how = way.removeprefix(OURS)
    return f"{OURS}, chunks of {chunk_ms} ms{how}"


def _distance(live: Live, torch_live: Live) -> float:
    """How far apart the features of the next steps are, over the largest; both go on from there."""
    ours, theirs = (
        torch.cat([each.step() for _ in range(3)], dim=-1) for each in (live, torch_live)
    )
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _hour(model: Model, settings: Settings) -> Table:
    """An hour is not waited for: nothing but positions and counts depends on the time, and these
    are moved on by it. Both streams take turns, so that they meet the same machine."""
    young, old = Live(model), Live(model)
    for live in (young, old):
        live.steps(1 if settings.quick else 12)(0)  # fills the context
    old.state = states.map_state(_an_hour_later, old.state)
    first = Contestant("a step of 320 ms, near the start", young.steps(1))
    table = measure(
        "HuBERT base over an hour",
        "ms",
        [first, Contestant("a step of 320 ms, an hour later", old.steps(1))],
        reference=first.name,
        rounds=max(1, settings.frames // 2),
        warmup=2,
        threads=settings.threads,
    )
    for when, live in (("near the start", young), ("an hour later", old)):
        table.facts[f"state {when}"] = f"{states.nbytes(live.state) / 1e6:.1f} MB"
    return table


def _an_hour_later(leaf: Tensor) -> Tensor:
    """Positions, which are whole numbers, moved on: by whole turns of the ring of 11 chunks, so
    that it is filled as it would be."""
    turns = HOUR_SECONDS * 1000 // (320 * 11)
    return leaf if leaf.is_floating_point() else leaf + turns * 11


class Live:
    """A stream that goes on for ever."""

    def __init__(self, model: Model) -> None:
        self.model = model
        spec = model.spec
        sound = torch.from_numpy(signals.speech(RATE, spec.lead + 64 * spec.hop))[None, None]
        self._chunks = sound[..., spec.lead :].split(spec.hop, dim=-1)
        self._next = 0
        _, self.state = model.step(sound[..., : spec.lead], None)

    def steps(self, count: int) -> Callable[[int], None]:
        def run(_: int) -> None:
            for _ in range(count):
                self.step()

        return run

    def step(self) -> Tensor:
        """The next chunk's features."""
        chunk = self._chunks[self._next % len(self._chunks)]
        y, self.state = self.model.step(chunk, self.state)
        self._next += 1
        return y


def _transformers(folder: Path) -> Any:
    """A window, (1, samples), to its features; or why not."""
    try:
        from transformers import HubertModel
    except ImportError as error:
        return f"not installed: {error.name}"
    model = HubertModel.from_pretrained(folder).eval()

    def run(window: Tensor) -> Tensor:
        # The extractor's part, which the model in transformers leaves to its caller.
        x = (window - window.mean()) / torch.sqrt(window.var(correction=0) + 1e-7)
        y: Tensor = model(x).last_hidden_state.transpose(1, 2)
        return y

    return run
