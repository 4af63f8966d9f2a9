"""Whole streams as numpy's `.npz`: what `streamenc.read` gives, as arrays in a file.

    codes, values  the data, as Track has them; `codes` of codes, else `values`
    times, gaps    seconds of each item, and the items before which something is missing
    scales         (items,), where they are not all 1
    rate, model    items a second, and what made them
    info           the stream as JSON, see `infojson`
    broken         why the stream ended before its end; "" where it did not

In a mux each but the last two is there for each track: `codes_0`, `times_0`, `values_1`, ...
"""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np

from streamenc import options
from streamenc.errors import MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import BlockingSink
from streamenc.io.files.infojson import info_from_json, info_to_json
from streamenc.io.files.output import WholeFile, output_error
from streamenc.io.files.tables.stacked import Recording, Stack, Track

# It is held in memory until the stream ends.
MAX_BYTES = 2 * 2**30


class NpzSink(BlockingSink):
    """Stacks a whole stream into arrays for numpy. The file is there once the stream ended; until
    then all is in memory, at most 2 GiB.

    overwrite  Whether an existing file is replaced; otherwise it is an OutputError.
    """

    def __init__(self, address: str, overwrite: str | bool = True) -> None:
        self.address = address
        self.overwrite = options.flag("overwrite", overwrite)
        self._file: WholeFile | None = None

    def open_blocking(self, info: StreamInfo) -> None:
        """Raises OutputError."""
        self._info, self._stack = info, Stack(info)
        self._file = WholeFile(self.address, self.overwrite)

    def write_blocking(self, frame: Frame) -> None:
        """Raises InputError where the number of codebooks changes, OutputError."""
        if self._file is None:
            raise OutputError(f"{self.address!r} is closed")
        if self._stack.size + frame.data.nbytes > MAX_BYTES:
            raise OutputError(
                f"{self.address!r} got more than {MAX_BYTES} bytes, and holds all in memory until "
                "the end: record to .arrows or .parquet, which streamenc.read reads too"
            )
        self._stack.add(frame)

    def close_blocking(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        arrays: dict[str, Any] = {"info": json.dumps(info_to_json(self._info))}
        arrays["broken"] = self.broken
        recording = self._stack.recording()
        for index, track in enumerate(recording.tracks):
            arrays |= _arrays(track, f"_{index}" if self._info.tracks else "")
        try:
            np.savez(file.file, **arrays)
        except OSError as error:
            file.discard()
            raise output_error(self.address, error) from error
        file.complete()


def _arrays(track: Track, suffix: str) -> dict[str, Any]:
    name = "codes" if track.info.kind == "codes" else "values"
    arrays: dict[str, Any] = {name: track.data, "times": track.times, "gaps": track.gaps}
    if track.scales is not None:
        arrays["scales"] = track.scales
    arrays |= {"rate": float(track.info.rate), "model": track.info.model}
    return {key + suffix: array for key, array in arrays.items()}


def read_npz(path: str) -> Recording:
    """What an NpzSink wrote. Raises MediaError."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise MediaError(f"cannot read {path!r} as .npz: {error}") from error
    if "info" not in found:
        raise MediaError(
            f"{path!r} is no recording of streamenc: it has {', '.join(found)} and lacks info; "
            "numpy.load reads it"
        )
    try:
        info = info_from_json(json.loads(str(found["info"])))
    except (ValueError, RecursionError) as error:
        raise MediaError(f"{path!r} has a damaged info: {error}") from error
    tracks = []
    for index, track in enumerate(info.tracks or (info,)):
        suffix = f"_{index}" if info.tracks else ""
        tracks.append(_track(track, found, suffix, path))
    return Recording(tuple(tracks), str(found.get("broken", "")))


def _track(info: StreamInfo, found: dict[str, Any], suffix: str, path: str) -> Track:
    names = ["codes" if info.kind == "codes" else "values", "times", "gaps"]
    arrays = [found.get(name + suffix) for name in names]
    scales = found.get("scales" + suffix)
    data, times, gaps = (np.empty(0) if array is None else array for array in arrays)
    whole = all(array is not None for array in arrays) and info.fits(data)
    if not whole or times.shape != data.shape[1:2] or gaps.ndim != 1:
        had = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in found.items())
        raise MediaError(
            f"{path!r} has {had}; wanted {', '.join(name + suffix for name in names)} of {info}"
        )
    return Track(info, data, times, gaps, scales)
