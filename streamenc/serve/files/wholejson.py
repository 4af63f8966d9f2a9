"""Codes as JSON, as a whole: what /v1/encode answers, and /v1/decode takes.

    {"model": "nano", "codes": [[312, 7, ...], ...], "frame_rate": 50.0, "samples": 48000,
     "rate": 48000.0, ...}

`codes` (or `features`) has a list for each codebook (or bin), of its items in time; of models of
images, an item is itself a list of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from streamenc.engine.remote.remotemodel import RemoteModel
from streamenc.errors import InputError, MediaError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSource
from streamenc.graph.timeline import Timeline
from streamenc.io.files.tables.stacked import Recording

# Of what is made at once, as numbers.
MAX_WHOLE_BYTES = 32 * 2**20
MAX_JSON_BYTES = 64 * 2**20


def whole_json(facts: dict[str, Any], recording: Recording) -> Iterator[bytes]:
    """The answer of /v1/encode, a row at a time: the facts, and what was made."""
    what = "codes" if recording.info.kind == "codes" else "features"
    facts = dict(facts)
    if recording.scales is not None:
        facts["scales"] = _floats(recording.scales)
    if recording.info.kind == "features":
        facts["dtype"] = recording.info.dtype
    if len(recording.gaps):
        facts["gaps"] = recording.gaps.tolist()
    if recording.segments is not None:
        facts["segments"] = recording.segments.tolist()
    if recording.data.ndim > 2 and recording.segments is None:
        facts["times"] = recording.times.tolist()
    yield msgspec.json.encode(facts)[:-1] + f',"{what}":['.encode()
    for number, row in enumerate(recording.data):
        numbers = row.tolist() if what == "codes" else _floats(row)
        yield b"," * bool(number) + msgspec.json.encode(numbers)
    yield b"]}"


def _floats(data: Any) -> Any:
    """As lists, of which float32 gives the same numbers again in as few digits as that takes. What
    is not finite becomes null."""
    return data.astype(np.float32).astype(np.str_).astype(np.float64).tolist()


class Tokens(Struct):
    """What /v1/decode takes of the JSON that /v1/encode answers; the rest is left alone.

    Attributes:
        samples: Of the sound that was encoded, and the `rate` that it had: how long it lasted.
        gaps: Items that do not follow on from the one before: the decoder starts anew there.
    """

    codes: list[list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]] | None = None
    features: list[list[float]] | None = None
    scales: list[float] | None = None
    samples: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    rate: Annotated[float, Meta(gt=0, le=1e6)] | None = None
    gaps: list[Annotated[int, Meta(ge=0)]] | None = None


_tokens = msgspec.json.Decoder(Tokens)


class TokensSource(BlockingSource):
    """Codes, or latents, from JSON as a whole, in frames of a second."""

    def __init__(self, path: str, model: RemoteModel) -> None:
        self._path, self._model = path, model
        self.replayed = True
        self._frames: Iterator[Frame] = iter(())

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError where it is no such JSON, InputError where it is not the model's."""
        with open(self._path, "rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise InputError(
                f"at most {MAX_JSON_BYTES} bytes of JSON are taken; send an Arrow stream"
            )
        try:
            tokens = _tokens.decode(raw)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise MediaError(f"the body is not JSON as /v1/encode answers it: {error}") from None
        del raw
        spec = self._model.spec
        rows = tokens.codes if spec.input.kind == "codes" else tokens.features
        what = spec.input.kind
        if rows is None:
            raise InputError(
                f'{spec.name} decodes {what}; wanted a field "{what}", a list for each of them'
            )
        if len({*map(len, rows)}) != 1 or len(rows) > spec.input.channels:
            raise InputError(
                f"{spec.name} takes {spec.input.channels} lists of {what} at most, all of one "
                f"length; got {len(rows)}"
            )
        entries = spec.codebook_size
        data = np.array(rows, np.int64 if entries else np.float32)
        if entries and data.size and data.max() >= entries:
            raise InputError(f"got code {data.max()}; {spec.name} has {entries} per codebook")
        self._rate = spec.output.rate
        info = StreamInfo(
            kind="codes" if entries else "features",
            time_base=1 / self._rate,
            rate=spec.input.rate,
            shape=(len(rows), None),
            dtype=spec.input.dtype,
            model=self._model.public_name,
            codebook_size=entries,
        )
        self.duration_seconds = data.shape[1] / float(info.rate)
        self._frames = self._read(tokens, data.astype(spec.input.dtype), info)
        return info

    def read(self) -> Frame | None:
        return next(self._frames, None)

    def _read(self, tokens: Tokens, data: Any, info: StreamInfo) -> Iterator[Frame]:
        count = data.shape[1]
        scales = tokens.scales or [1.0] * count
        if len(scales) != count:
            raise InputError(f"got {len(scales)} scales of {count} items; wanted one for each")
        spec = self._model.spec
        # Segments may overlap, and then there are more items than a second has.
        timeline = Timeline(self._rate * spec.hop / spec.hop_out, info.time_base)
        end = timeline.pts(count)
        if tokens.samples is not None and tokens.rate is not None:
            said = round(tokens.samples * self._rate / Fraction(tokens.rate))
            end = said if spec.scaled else min(end, said)
        gaps = {*(tokens.gaps or ())}
        most = spec.hop if spec.scaled else max(1, int(info.rate))
        start = seq = 0
        while start < count:
            stop = start + 1
            while (
                stop < min(count, start + most)
                and stop not in gaps
                and scales[stop] == scales[start]
            ):
                stop += 1
            pts = min(end, timeline.pts(start))
            until = end if stop == count else min(end, timeline.pts(stop))
            yield Frame(
                np.ascontiguousarray(data[:, start:stop]),
                pts,
                until - pts,
                seq,
                discontinuity=start in gaps,
                scale=scales[start],
            )
            start, seq = stop, seq + 1
