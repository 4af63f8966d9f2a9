"""BatchEncoder: batches of a table with tokens beside them, for Ray Data, `datasets` and others."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from streamenc import registry
from streamenc.bulk.encoding.tokenizer import Tokenizer
from streamenc.bulk.inputs.filesystem import is_remote, local_name
from streamenc.bulk.items import Blob, Fault, Item, Local, Media, Remote, Row
from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob
from streamenc.errors import InputError, StreamencError, UsageError

# Of Ray's `read_audio`.
SAMPLES, RATE = "amplitude", "sample_rate"
IEEE_FLOAT = 3


class BatchEncoder:
    """Encodes a column of a batch; each item alone, equal to `codec.encode` of it.

    The model is loaded with the first batch, in the process that has it: an encoder is small on its
    way to another one.

    Args:
        model: As `streamenc.load` takes it, or a ModelAsk with options of its family.
        column: Where the items are: bytes of a file, `{"bytes", "path"}`, paths, addresses in a
            store that fsspec opens, or `{"array", "sampling_rate"}`. Where there is no such column,
            `amplitude` (channels, samples) and `sample_rate`, as Ray's `read_audio` has them.
        codebooks: How many come out; None for all.
        layout: "books", "flat", "delay" or "delay:0,1,1,1"; see nodes.codes.interleaving.
        device: As `streamenc.load` takes it; "auto" for a GPU where there is one.
        into: The column of the tokens; "" for what they are, "codes" or "features".

    Raises, with the first batch, UsageError for what the model cannot do, and CheckpointError where
    there is none.
    """

    def __init__(
        self,
        model: str | ModelAsk,
        *,
        column: str = "audio",
        codebooks: int | None = None,
        layout: str = "books",
        device: str = "auto",
        into: str = "",
    ) -> None:
        self.arguments: dict[str, Any] = {
            "model": model,
            "column": column,
            "codebooks": codebooks,
            "layout": layout,
            "device": device,
            "into": into,
        }
        if isinstance(model, str):
            model = ModelAsk(name=model, codebooks=codebooks)
        elif codebooks is not None:
            raise UsageError("got codebooks beside a ModelAsk; put them into it")
        self._job = TokenizeJob(input="", models=(model,), layout=layout)
        self._column, self._device, self._into = column, device, into
        self._loaded: Tokenizer | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.arguments,)

    def __call__(self, batch: Any) -> Any:
        """A batch with what was made of its items.

        Args:
            batch: A pyarrow Table, or a mapping of columns: arrays, as Ray has them, or lists, as
                `datasets` has them.

        Returns:
            As the batch came, a table or a mapping; of lists, the new columns alone. Those are
            the tokens as lists, (rows, frames), or null for an item that is bad; `n_samples` that
            were decoded; `frame_rate`, in hertz; `error`, why an item is bad, else null; and
            `scales`, (frames,), of codes that have any.

        Raises:
            UsageError: For a batch without the column, or with one of the new ones already.
        """
        tokenizer = self._tokenizer()
        facts = tokenizer.facts[0]
        into = self._into or facts.column
        new = [into, "n_samples", "frame_rate", "error", *(["scales"] if facts.scaled else [])]
        names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
        if there := sorted({*new} & {*names}):
            raise UsageError(
                f"the batch has columns {', '.join(there)} already; rename them, or give the "
                "tokens another column (into=...)"
            )
        made = list(tokenizer.rows(_items(batch, self._column, names)))
        rows = [row if isinstance(row, Row) else None for row in made]
        rate = float(Fraction(facts.frame_rate))
        columns: dict[str, list[Any]] = {
            into: [row.tokens[0].data if row else None for row in rows],
            "n_samples": [row.n_samples if row else None for row in rows],
            "frame_rate": [rate] * len(rows),
            "error": [fault.reason if isinstance(fault, Fault) else None for fault in made],
        }
        if facts.scaled:
            columns["scales"] = [row.tokens[0].scales if row else None for row in rows]
        if not isinstance(batch, pa.Table):
            if not _of_arrays(batch):
                return columns
            return {**batch, **{name: _lists(column) for name, column in columns.items()}}
        value = pa.from_numpy_dtype(np.dtype(facts.dtype))
        for _ in range(2 + facts.axes):
            value = pa.list_(value)
        types = [value, pa.int64(), pa.float64(), pa.string(), pa.list_(pa.float32())]
        for (name, column), type in zip(columns.items(), types, strict=False):
            batch = batch.append_column(name, pa.array(_lists(column), type))
        return batch

    def _tokenizer(self) -> Tokenizer:
        if self._loaded is None:
            device = str(registry.device_of(self._device))
            copies = Path(tempfile.gettempdir())
            self._loaded = Tokenizer(self._job, copies, device, decoders=0)
        return self._loaded


def ray_encoder(
    model: str | ModelAsk,
    *,
    column: str = "audio",
    codebooks: int | None = None,
    layout: str = "books",
    device: str = "auto",
    into: str = "",
) -> type[BatchEncoder]:
    """A class for `map_batches`, of which each actor makes one; arguments as those of BatchEncoder.

    dataset.map_batches(ray_encoder("nano"), batch_size=16, compute=ActorPoolStrategy(size=2))
    dataset.map(ray_encoder("nano")(), batched=True)  # of `datasets`, which wants an object
    """
    made = BatchEncoder(
        model, column=column, codebooks=codebooks, layout=layout, device=device, into=into
    )

    class Encoder(BatchEncoder):
        def __init__(self) -> None:
            super().__init__(**made.arguments)

    return Encoder


def _again(arguments: dict[str, Any]) -> BatchEncoder:
    return BatchEncoder(**arguments)


def _of_arrays(batch: Mapping[str, Any]) -> bool:
    return any(isinstance(column, np.ndarray) for column in batch.values())


def _lists(value: Any) -> Any:
    """Arrays as nested lists of arrays of one axis, which keep their type on the way to Arrow."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.ndim > 1):
        return [_lists(each) for each in value]
    return value


def _items(batch: Any, column: str, names: list[str]) -> Iterable[Item | Fault]:
    if column not in names and {SAMPLES, RATE} <= {*names}:
        values: Iterable[Any] = (
            {"array": samples, "sampling_rate": rate}
            for samples, rate in zip(_column(batch, SAMPLES), _column(batch, RATE), strict=True)
        )
    elif column in names:
        values = _column(batch, column)
    else:
        raise UsageError(
            f"the batch has no column {column!r} but {', '.join(names)}; name the one that has the "
            "items (column=...)"
        )
    for number, value in enumerate(values):
        key = str(number)
        try:
            yield Item(key, _media(value))
        except StreamencError as error:
            yield Fault(key, key, str(error), type(error).__name__)


def _column(batch: Any, name: str) -> Iterable[Any]:
    column: Iterable[Any] = batch[name]
    return column.to_pylist() if isinstance(column, pa.ChunkedArray) else column


def _media(value: Any) -> Media:
    """Where the bytes of a value are. Raises InputError."""
    if isinstance(value, Mapping):
        if (data := value.get("bytes")) is not None:
            return Blob(bytes(data), str(value.get("path") or "bytes"))
        if value.get("array") is not None:
            rate = value.get("sampling_rate") or value.get(RATE)
            return Blob(_wave(np.asarray(value["array"]), rate), "samples")
        value = value.get("path")
    if isinstance(value, bytes | bytearray | memoryview):
        return Blob(bytes(value), "bytes")
    if isinstance(value, Path):
        return Local(str(value))
    if isinstance(value, str) and value:
        return Remote(value) if is_remote(value) else Local(local_name(value))
    if value is None or isinstance(value, str):
        raise InputError("there is nothing in this row")
    raise InputError(
        f"got {type(value).__name__}; wanted the bytes of a file, its path, or a mapping with "
        "bytes or array and sampling_rate (of `datasets`: Audio(decode=False))"
    )


def _wave(samples: np.ndarray, rate: Any) -> bytes:
    """Samples as a file: (samples,) or (channels, samples), float in [-1, 1] or integers.

    Raises InputError.
    """
    if samples.ndim not in (1, 2) or samples.dtype == object:
        raise InputError(
            f"got samples of shape {samples.shape} and type {samples.dtype}; wanted (samples,) or "
            "(channels, samples)"
        )
    if not isinstance(rate, int | np.integer) or not 0 < rate < 2**31:
        raise InputError(f"got samples with rate {rate!r}; wanted hertz, as an integer")
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min)
    data = np.atleast_2d(samples).astype("<f4")
    channels, frame = data.shape[0], 4 * data.shape[0]
    if data.nbytes >= 2**32 - 64:
        raise InputError(f"{data.nbytes >> 20} MiB of samples are too many; give paths, or pieces")
    form = struct.pack("<HHIIHHH", IEEE_FLOAT, channels, rate, rate * frame, frame, 32, 0)
    fact = struct.pack("<I", data.shape[1])
    body = b"".join(
        name + struct.pack("<I", len(chunk)) + chunk
        for name, chunk in ((b"fmt ", form), (b"fact", fact), (b"data", data.T.tobytes()))
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body
