"""A tokenizer without a model, and sets of files that it understands: runs of tens of milliseconds.

A file's bytes are its tokens. Some begin with what becomes of whoever takes them:

    broken     A fault.
    die NAME   The process is ended by that signal.
    raise      An exception that nobody expects.
    hang       Nothing more comes of it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from streamenc.bulk.items import Fault, Item, Local, Row, Tokens
from streamenc.bulk.tokenizejob import ModelAsk, ModelFacts, TokenizeJob
from streamenc.errors import CheckpointError

FACTS = ModelFacts(
    name="stub", column="codes", kind="codes", fingerprint="0", takes="audio", rate="8000",
    channels=1, frame_rate="50", codebooks=1, codebook_size=256, rows=1, dtype="int16", entries=256,
)  # fmt: skip


class StubTokenizer:
    """As Tokenizer. Options of the model: `seconds` that each item takes, `ahead`: items that are
    taken before the first one is given back, `fails`: with which words it does not load."""

    def __init__(
        self, job: TokenizeJob, scratch: Path, device: str = "cpu", *, decoders: int | None = None
    ) -> None:
        options = job.models[0].options
        if "fails" in options:
            raise CheckpointError(options["fails"])
        self._seconds, self._ahead = options.get("seconds", 0.0), options.get("ahead", 1)
        self.facts, self.takes = (FACTS,), "audio"
        self.spent: defaultdict[str, float] = defaultdict(float)

    def __enter__(self) -> StubTokenizer:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def rows(self, items: Iterable[Item | Fault]) -> Iterator[Row | Fault]:
        taken = []
        for item in items:
            taken.append(item)
            if len(taken) == self._ahead:
                yield from map(self._row, taken)
                taken = []
        yield from map(self._row, taken)

    def _row(self, item: Item | Fault) -> Row | Fault:
        if isinstance(item, Fault):
            return item
        assert isinstance(item.media, Local)
        data = Path(item.media.path).read_bytes()
        word, _, name = data.decode("latin-1").partition(" ")
        if word == "broken":
            return Fault(item.key, item.media.name, f"{item.media.path}: {name}", "MediaError")
        if word == "die":
            os.kill(os.getpid(), signal.Signals[name])
        if word == "hang":
            time.sleep(1000)
        if word == "raise":
            raise RuntimeError(name)
        time.sleep(self._seconds)
        self.spent["encoding"] += self._seconds
        tokens = np.frombuffer(data, np.uint8).astype(np.int16)[None]
        return Row(item.key, (Tokens(tokens),), len(data) * 160, 8000.0, (), item.columns)


def write_files(folder: Path, count: int, special: Mapping[int, str] | None = None) -> Path:
    """Files of different lengths, of which some hold what is said of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        text = (special or {}).get(number, f"{number:04d}" * (1 + number * 7 % 13))
        (folder / f"{number:04d}.wav").write_text(text)
    return folder


def stub_job(folder: Path, items_per_shard: int = 3, **options: object) -> TokenizeJob:
    return TokenizeJob(
        input=str(folder),
        input_kind="folder",
        models=(ModelAsk(name="stub", options=options),),
        items_per_shard=items_per_shard,
    )
