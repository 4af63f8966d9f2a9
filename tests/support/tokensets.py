"""Sets of tokens as a finished run leaves them, made without a model."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from streamenc.bulk.inputs.datainput import Span
from streamenc.bulk.items import Row, Tokens
from streamenc.bulk.jobplan import _Header
from streamenc.bulk.manifest import Finished, Manifest
from streamenc.bulk.outputs.shard import publish
from streamenc.bulk.outputs.shardformats import shard_class
from streamenc.bulk.tokenizejob import ModelAsk, ModelFacts, TokenizeJob
from streamenc.nodes.codes.interleaving import Layout, Layouter, token_dtype

BOOKS, ENTRIES = 3, 50
COLUMNS = pa.schema([("speaker", pa.string()), ("rank", pa.int32())])


def facts(layout: str = "books", **changes: Any) -> ModelFacts:
    """Of a model of codes whose frames are 100 samples at 1 kHz."""
    layouter = Layouter(Layout.of(layout), BOOKS, ENTRIES)
    told = {
        "name": "toy",
        "column": "codes",
        "kind": "codes",
        "fingerprint": "0" * 32,
        "takes": "audio",
        "rate": "1000",
        "channels": 1,
        "frame_rate": str(10 * layouter.per_frame),
        "codebooks": BOOKS,
        "codebook_size": ENTRIES,
        "rows": layouter.rows,
        "dtype": token_dtype(layouter.entries).name,
        "entries": layouter.entries,
        "layout": layout,
    }
    return ModelFacts(**(told | changes))


def codes_of(number: int) -> np.ndarray[Any, Any]:
    """Of the row of that number: (codebooks, frames), of which there may be none."""
    frames = number * 7 % 11
    return np.random.default_rng(number).integers(0, ENTRIES, (BOOKS, frames)).astype(np.uint16)


def row_of(number: int, layout: str = "books", gaps: Sequence[int] = ()) -> Row:
    """`gaps` are those of its frames."""
    codes = codes_of(number)
    pieces = []
    for piece in np.split(codes, gaps, axis=1):
        layouter = Layouter(Layout.of(layout), BOOKS, ENTRIES)
        pieces.append(np.concatenate((layouter.push(piece), layouter.flush()), axis=1))
    ends = np.cumsum([piece.shape[1] for piece in pieces])[:-1]
    tokens = Tokens(np.concatenate(pieces, axis=1), gaps=tuple(int(end) for end in ends))
    samples, columns = 100 * codes.shape[1], {"speaker": f"s{number % 3}", "rank": number}
    return Row(f"row {number}", (tokens,), samples, 1000.0, ("gaps",) if gaps else (), columns)


def make_set(
    output: Path,
    counts: Sequence[int],
    *,
    layout: str = "books",
    format: str = "parquet",
    parts: int | None = None,
    gaps: Sequence[int] = (),
    models: tuple[ModelFacts, ...] = (),
) -> Path:
    """A set whose N-th finished part has `counts[N]` rows, numbered through from 0."""
    models = models or (facts(layout),)
    job = TokenizeJob(input="nowhere", models=(ModelAsk(name="toy"),), layout=layout, format=format)
    (output / "plan" / "kept").mkdir(parents=True)
    (output / "data").mkdir()
    (output / "scratch").mkdir()
    columns = base64.b64encode(COLUMNS.serialize().to_pybytes()).decode()
    parts = len(counts) if parts is None else parts
    header = _Header(1, job, models, columns, parts)
    (output / "plan" / "job.json").write_bytes(msgspec.json.encode(header))
    spans = b"".join(msgspec.json.encode(Span("nowhere", at)) + b"\n" for at in range(parts))
    (output / "plan" / "parts.jsonl").write_bytes(spans)
    manifest = Manifest(output)
    first = 0
    for part, count in enumerate(counts):
        rows = [row_of(number, layout, gaps) for number in range(first, first + count)]
        manifest.add(finish_part(output, part, rows, models, format), [])
        first += count
    manifest.close()
    return output


def finish_part(
    output: Path,
    part: int,
    rows: Sequence[Row],
    models: tuple[ModelFacts, ...],
    format: str = "parquet",
) -> Finished:
    """Writes the shard of a part; its line for the manifest."""
    with tempfile.TemporaryDirectory(dir=output / "scratch") as folder:
        shard = shard_class(format)(Path(folder), part, models, COLUMNS)
        for row in rows:
            shard.write(row)
        shard.complete()
        files = tuple(publish(path, output, f"data/{path.name}") for path in shard.paths)
    return Finished(
        part=part,
        files=files,
        source="nowhere",
        items=len(rows),
        errors=0,
        seconds=sum(row.seconds for row in rows),
        frames=(sum(row.tokens[0].data.shape[1] for row in rows),),
    )
