"""Rows of tokens for tests of what sets are written as: of models of all kinds, without a model."""

from __future__ import annotations

import datetime
import gc
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.outputs.shardformats import shard_class
from streamenc.bulk.tokenizejob import ModelFacts

NO_COLUMNS = pa.schema([])


def facts(**differing: Any) -> ModelFacts:
    """Of a codec of 4 codebooks of 1,024 entries at 50 frames a second."""
    made: dict[str, Any] = {
        "name": "nano",
        "column": "codes",
        "kind": "codes",
        "fingerprint": "0123456789abcdef",
        "takes": "audio",
        "rate": "16000",
        "channels": 1,
        "frame_rate": "50",
        "codebooks": 4,
        "codebook_size": 1024,
        "rows": 4,
        "dtype": "uint16",
        "entries": 1024,
    }
    return ModelFacts(**(made | differing))


CODES = facts()
FLAT = facts(layout="flat", rows=1, dtype="uint32", codebooks=80, entries=81_920, frame_rate="4000")
DELAY = facts(layout="delay", entries=1025)
SCALED = facts(name="encodec-48khz", scaled=True, frame_rate="75")
FEATURES = facts(
    name="mel", column="features", kind="features", rows=5, dtype="float16", codebooks=0,
    codebook_size=0, entries=0, frame_rate="100",
)  # fmt: skip
GRIDS = facts(
    name="cosmos", takes="video", rate="24", channels=3, frame_rate="0", frames_per_image="1/4",
    rows=2, axes=2, codebooks=2, dtype="uint32", entries=64_000, codebook_size=64_000,
)  # fmt: skip
MODELS = {
    "codes": (CODES,),
    "flat": (FLAT,),
    "delay": (DELAY,),
    "scaled": (SCALED,),
    "features": (FEATURES,),
    "grids": (GRIDS,),
    "several": (facts(column="nano_codes"), facts(
        name="mel", column="mel_features", kind="features", rows=5, dtype="float32",
        codebooks=0, codebook_size=0, entries=0, frame_rate="100",
    )),
}  # fmt: skip
COLUMNS = pa.schema(
    [
        pa.field("text", pa.string()),
        pa.field("speaker", pa.int16(), nullable=False),
        pa.field("rate", pa.string()),  # as one of the set's own
        pa.field("said", pa.timestamp("ns", "UTC")),
        pa.field("price", pa.decimal128(9, 2)),
        pa.field("raw", pa.binary()),
        pa.field("words", pa.list_(pa.struct([("word", pa.string()), ("at", pa.float32())]))),
        pa.field("box", pa.list_(pa.float64(), 2)),
    ]
)


def passed(number: int) -> dict[str, Any]:
    """Values of COLUMNS."""
    return {
        "text": f"word {number}, été",
        "speaker": number,
        "rate": "slow",
        "said": datetime.datetime(2024, 5, number + 1, 12, tzinfo=datetime.UTC),
        "price": Decimal("12.50"),
        "raw": bytes([number, 255]),
        "words": [{"word": "one", "at": 0.5}, {"word": "two", "at": 1.25}],
        "box": [0.5, float(number)],
    }


def tokens(model: ModelFacts, frames: int, seed: int) -> Tokens:
    generator = np.random.default_rng(seed)
    shape = (model.rows, frames, *((3, 2)[: model.axes]))
    if model.entries:
        data = generator.integers(0, model.entries, shape).astype(model.dtype)
    else:
        data = generator.standard_normal(shape).astype(model.dtype)
    scales = generator.random(frames, np.float32) + 0.5 if model.scaled else None
    return Tokens(data, scales, (2,) if frames > 2 and seed % 2 else ())


def rows(models: Sequence[ModelFacts], count: int = 4, columns: bool = False) -> list[Row]:
    """Of 0, 5, 10, ... frames, the keys of which are as files are called."""
    made = []
    for number in range(count):
        key = f"speech/{number}.x/take.{number}.wav"
        each = tuple(tokens(model, 5 * number, 10 * number + 1) for model in models)
        flags = ("gaps",) if number > 1 else ("empty",) if not number else ()
        values = passed(number) if columns else {}
        made.append(Row(key, each, 1600 * number + 7, 16_000.0, flags, values))
    return made


def write(
    folder: Path,
    format: str,
    models: Sequence[ModelFacts],
    of: Iterable[Row],
    columns: pa.Schema = NO_COLUMNS,
    part: int = 0,
) -> list[Path]:
    """Writes a shard. Returns its files."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = shard_class(format)(folder, part, models, columns)
    for row in of:
        shard.write(row)
    shard.complete()
    assert sorted(folder.iterdir()) == sorted(shard.paths)
    return shard.paths


@contextmanager
def careless() -> Iterator[None]:
    """Around a library that leaves files to the garbage collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def hashes(paths: Iterable[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
