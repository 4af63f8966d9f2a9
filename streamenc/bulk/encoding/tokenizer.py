"""Tokenizer: the models of a job in one process, and items through all of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Self

import msgspec
import numpy as np

from streamenc import registry
from streamenc.bulk.decoding.decoders import OwnDecoder
from streamenc.bulk.decoding.decodethreads import DecodeThreads
from streamenc.bulk.decoding.mediareader import MediaReader
from streamenc.bulk.decoding.preparing import Preparing, Wanted
from streamenc.bulk.encoding.manyitems import ManyItems
from streamenc.bulk.encoding.modellanes import ModelLanes, in_lanes
from streamenc.bulk.encoding.onebyone import OneByOne
from streamenc.bulk.encoding.road import Models, Road
from streamenc.bulk.encoding.verifier import Verifier
from streamenc.bulk.items import Fault, Item, Row
from streamenc.bulk.tokenizejob import ModelAsk, ModelFacts, TokenizeJob
from streamenc.codec import Codec
from streamenc.errors import UsageError
from streamenc.nodes.codes.interleaving import Layout, Layouter, token_dtype

LANES = 256  # of a GPU


class Tokenizer:
    """Loads the models of a job, in float32 and in torch: what a set holds is what was published.

    Args:
        scratch: A folder for copies of what is no file.
        device: As `streamenc.load` takes it.
        decoders: Threads that decode where there are lanes; None or 0 for none beside this one.
        lanes: Items that go through the models at once, each in a lane of its own; 0 for items one
            after the other, each alone. None for LANES where the device is a GPU, and else 0.

    Attributes:
        facts: What a set says of the models.
        takes: What they take, "audio" or "video".
        spent: Seconds of this process so far, by what they were spent on: "reading", "decoding",
            "encoding".

    A context manager: leaving it ends its processes.

    Raises UsageError where the models do not take the same, or an option is none of theirs, such as
    a size that one of them cannot have.
    """

    def __init__(
        self,
        job: TokenizeJob,
        scratch: Path,
        device: str = "cpu",
        *,
        decoders: int | None = None,
        lanes: int | None = None,
    ) -> None:
        self.job = job
        self._codecs = [
            registry.load(ask.name, part="encoder", device=device, backend="torch", **ask.options)
            for ask in job.models
        ]
        self.facts = all_facts(self._codecs, job)
        self.takes = self.facts[0].takes
        if any(facts.takes != self.takes for facts in self.facts):
            raise UsageError("models of one run take all sound, or all images")
        nothing = [np.zeros((one.rows, 0) + (0,) * one.axes, one.dtype) for one in self.facts]
        self._models = Models(job, self._codecs, nothing)
        self.spent = self._models.spent
        reader = MediaReader(self.takes, scratch, job.damaged)
        preparing = Preparing(reader, [Wanted.of(codec, job) for codec in self._codecs])
        self._verifier = Verifier(self._models, preparing, job.verify)
        self._alone = OneByOne(self._models, preparing)
        if lanes is None:
            lanes = LANES if self._codecs[0].encoder.like.is_cuda else 0
        self._road: Road = self._alone
        if lanes:
            self._road = ManyItems(
                self._models,
                preparing.of,
                DecodeThreads(preparing, decoders) if decoders else OwnDecoder(preparing),
                [
                    ModelLanes(codec, ask, job.layout, lanes) if in_lanes(codec.encoder) else None
                    for codec, ask in zip(self._codecs, job.models, strict=True)
                ],
                lanes,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what it started; may be called twice."""
        self._road.close()

    def rows(self, items: Iterable[Item | Fault]) -> Iterator[Row | Fault]:
        """What becomes of items, in their order; a Fault for one that is bad."""
        if not self.job.verify:
            return self._road.rows(items)
        return self._verified(items)

    def _verified(self, items: Iterable[Item | Fault]) -> Iterator[Row | Fault]:
        chosen: dict[str, Item] = {}

        def seen() -> Iterator[Item | Fault]:
            for item in items:
                if isinstance(item, Item) and self._verifier.chosen(item.key):
                    chosen[item.key] = item
                yield item

        for made in self._road.rows(seen()):
            item = chosen.pop(made.key, None)
            if item is None or isinstance(made, Fault):
                yield made
            else:
                with self._models.timed("encoding"):
                    made = self._verifier.verified(item, made)
                yield made

    def row(self, item: Item) -> Row | Fault:
        """One item, alone."""
        return self._alone.row(item)


def all_facts(codecs: Sequence[Codec], job: TokenizeJob) -> tuple[ModelFacts, ...]:
    """What a set says of the models of a job, where each has a column of its own."""
    facts = [facts_of(codec, ask, job) for codec, ask in zip(codecs, job.models, strict=True)]
    if len(facts) > 1:
        words = _words([one.name for one in facts])
        facts = [
            msgspec.structs.replace(one, column=f"{word}_{one.kind}")
            for one, word in zip(facts, words, strict=True)
        ]
    return tuple(facts)


def facts_of(codec: Codec, ask: ModelAsk, job: TokenizeJob) -> ModelFacts:
    """What a set says of a model that is alone in it. Raises UsageError for what it cannot do."""
    spec = codec.spec
    takes, output = spec.input, spec.output
    if takes.kind not in ("audio", "video"):
        raise UsageError(f"{codec.name} takes {takes.kind}; tokenize takes sound and images")
    books = ask.codebooks or output.channels
    if ask.codebooks is not None:
        codec.encoder.check_codebooks(ask.codebooks)
    rows, dtype, entries = books, ask.dtype or output.dtype, spec.codebook_size
    rate = Fraction(0) if takes.kind == "video" else output.rate
    if output.kind == "codes" and job.layout != "books":
        _check_layout(codec, job.layout)
        layouter = Layouter(Layout.of(job.layout), books, spec.codebook_size)
        rows, entries = layouter.rows, layouter.entries
        dtype, rate = token_dtype(entries).name, rate * layouter.per_frame
    return ModelFacts(
        name=codec.public_name,
        column=output.kind,
        kind=output.kind,
        fingerprint=codec.encoder.fingerprint(),
        takes=takes.kind,
        rate=str(takes.rate),
        channels=takes.channels,
        frame_rate=str(rate),
        frames_per_image=str(output.rate / takes.rate if takes.kind == "video" else 0),
        codebooks=books if output.kind == "codes" else 0,
        codebook_size=spec.codebook_size,
        rows=rows,
        dtype=dtype,
        axes=output.axes,
        entries=entries,
        scaled=spec.scaled,
        layout=job.layout if output.kind == "codes" else "books",
    )


def _check_layout(codec: Codec, layout: str) -> None:
    spec, name = codec.spec, Layout.of(layout).name
    if spec.output.axes:
        raise UsageError(
            f"layout={layout}: layouts are of codes of sound; those of {codec.name} lie on a grid"
        )
    if spec.scaled and name == "delay":
        raise UsageError(
            f"layout={layout}: codes of {codec.name} have a scale for each segment, and columns of "
            "delay are of several: take layout=flat"
        )


def _words(names: Sequence[str]) -> list[str]:
    """What the columns of models begin with, each with another word: the last part of a name, and
    a number where one before has the same."""
    words: list[str] = []
    for name in names:
        last = name.rpartition("/")[2].lower()
        word = "".join(letter if letter.isalnum() else "_" for letter in last).strip("_")
        numbered = (f"{word or 'model'}_{number}" for number in itertools.count(2 if word else 1))
        if not word or word in words:
            word = next(each for each in numbered if each not in words)
        words.append(word)
    return words
