"""Whole streams as numpy's `.npz`: what `streamenc.read` gives, as arrays in a file.

    codes, values  the data, as Track has them; `codes` of codes, `text` of text, else `values`
    times, gaps    seconds of each item, and the items before which something is missing
    scales         (items,), where they are not all 1
    segments, revised  (items,) both, of text and what was made of it
    rate, model    items a second, and what made them
    frames         (frames, 3) int64: the first item, pts and duration of each frame of the stream
    info           the stream as JSON, see `infojson`
    broken         why the stream ended before its end; "" where it did not

In a mux each but the last two is there for each track: `codes_0`, `times_0`, `values_1`, ...
"""

from __future__ import annotations

import heapq
import json
import logging
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from streamenc import options
from streamenc.errors import MediaError, OutputError
from streamenc.graph.frames import Frame, StreamInfo, frame_fault
from streamenc.graph.node import BlockingSink, BlockingSource
from streamenc.io.files.infojson import info_from_json, info_to_json
from streamenc.io.files.output import WholeFile, output_error
from streamenc.io.files.tables.stacked import Recording, Stack, Track

log = logging.getLogger(__name__)

# It is held in memory until the stream ends.
MAX_BYTES = 2 * 2**30
# What is read: streamenc packs nothing, numpy's savez_compressed does, to a thousandth at most.
MAX_ARRAYS, MAX_UNPACKED_BYTES, MAX_UNPACKING = 4096, 64 * 2**20, 50
# What damaged files raise; a file that was saved anew may be compressed.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


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
        self._frames: list[list[tuple[int, int, int]]] = [[] for _ in info.tracks or (info,)]
        self._items = [0] * len(self._frames)
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
        count = frame.data.shape[1]
        if count:
            place = self._items[frame.track], frame.pts, frame.duration
            self._frames[frame.track].append(place)
            self._items[frame.track] += count

    def close_blocking(self) -> None:
        file, self._file = self._file, None
        if file is None:
            return
        if self.broken and not any(self._items):
            file.discard()  # so that what had the name before keeps it
            return
        arrays: dict[str, Any] = {"info": json.dumps(info_to_json(self._info))}
        arrays["broken"] = self.broken
        recording = self._stack.recording()
        for index, track in enumerate(recording.tracks):
            suffix = f"_{index}" if self._info.tracks else ""
            arrays |= _arrays(track, suffix)
            arrays["frames" + suffix] = np.array(self._frames[index], np.int64).reshape(-1, 3)
        try:
            np.savez(file.file, **arrays)
        except OSError as error:
            file.discard()
            raise output_error(self.address, error) from error
        file.complete()


def _arrays(track: Track, suffix: str) -> dict[str, Any]:
    name = _name(track.info)
    arrays: dict[str, Any] = {name: track.data, "times": track.times, "gaps": track.gaps}
    for key, array in (
        ("scales", track.scales),
        ("segments", track.segments),
        ("revised", track.revised),
    ):
        if array is not None:
            arrays[key] = array
    arrays |= {"rate": float(track.info.rate), "model": track.info.model}
    return {key + suffix: array for key, array in arrays.items()}


def _name(info: StreamInfo) -> str:
    """What the array of the data is called."""
    return {"codes": "codes", "text": "text"}.get(info.kind, "values")


class NpzSource(BlockingSource):
    """Plays back what an NpzSink wrote, frame by frame; tracks in the order of time.

    broken  What it says of its end.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.replayed = Path(address).is_file()
        self._frames: Iterator[Frame] = iter(())

    def open_blocking(self) -> StreamInfo:
        """Raises MediaError."""
        info, found = _opened(self.address)
        recording = _recording(info, found, self.address)
        self.broken = recording.broken
        if self.broken:
            log.warning("%s: %s", self.address, self.broken)
        frames: list[Iterator[Frame]] = []
        for index, track in enumerate(recording.tracks):
            places = found.get("frames" + (f"_{index}" if info.tracks else ""))
            frames.append(iter([*self._of_track(index, track, places)]))
        bases = [track.info.time_base for track in recording.tracks]
        # Each track stays as it was: a segment that was revised has its time once more.
        self._frames = heapq.merge(*frames, key=lambda frame: frame.pts * bases[frame.track])
        return info

    def read(self) -> Frame | None:
        frame = next(self._frames, None)
        return None if frame is None else frame.with_(arrived_ns=self.clock.now_ns())

    def close_blocking(self) -> None:
        self._frames = iter(())

    def _of_track(self, index: int, track: Track, places: Any) -> Iterator[Frame]:
        count = track.data.shape[1]
        whole = places is not None and places.dtype == np.int64 and places.shape[1:] == (3,)
        starts = [*places[:, 0].tolist(), count] if whole else []
        if starts[:1] != [0] or (np.diff(starts) <= 0).any():
            raise MediaError(
                f"{self.address!r} does not say where the frames of its stream begin: `frames` is "
                "missing or damaged; streamenc.read gives its arrays"
            )
        gaps = set(track.gaps.tolist())
        for seq, (start, pts, duration) in enumerate(places.tolist()):
            frame = Frame(
                data=track.data[:, start : starts[seq + 1]],
                pts=pts,
                duration=duration,
                seq=seq,
                discontinuity=start in gaps,
                scale=1.0 if track.scales is None else float(track.scales[start]),
                track=index,
                segment=-1 if track.segments is None else int(track.segments[start]),
                revised=track.revised is not None and bool(track.revised[start]),
            )
            if fault := frame_fault(track.info, frame):
                raise MediaError(f"frame {seq} of {self.address!r} is none: {fault}")
            yield frame


def read_npz(path: str) -> Recording:
    """What an NpzSink wrote. Raises MediaError."""
    return _recording(*_opened(path), path)


def _opened(path: str) -> tuple[StreamInfo, dict[str, Any]]:
    """What it says that it holds, and its arrays."""
    try:
        # Opened here, as numpy leaves a file open that is none.
        with open(path, "rb") as file, _zipped(file) as arrays:
            _check_sizes(arrays.zip)
            found = {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise MediaError(f"cannot open {path!r}: {error.strerror}") from error
    except _UNREADABLE as error:
        raise MediaError(f"cannot read {path!r} as .npz: {error}") from error
    if "info" not in found:
        raise MediaError(
            f"{path!r} is no recording of streamenc: it has {', '.join(found)} and lacks info; "
            "numpy.load reads it"
        )
    try:
        info = info_from_json(json.loads(str(found["info"])))
    except (ValueError, RecursionError, MediaError) as error:
        raise MediaError(f"{path!r} has a damaged info: {error}") from error
    return info, found


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raises ValueError where it would become more than it can be worth: zip says so before."""
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    most = min(MAX_BYTES, max(MAX_UNPACKED_BYTES, MAX_UNPACKING * packed))
    if len(members) > MAX_ARRAYS or size > most:
        raise ValueError(
            f"its {len(members)} arrays become {size} bytes; at most {MAX_ARRAYS} arrays and "
            f"{most} bytes are read from one of this size: save it uncompressed (numpy.savez)"
        )


def _zipped(file: BinaryIO) -> Any:
    """Raises ValueError where it is a single array."""
    loaded = np.load(file, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise ValueError("it is one array, an .npy; numpy.load reads it")
    return loaded


def _recording(info: StreamInfo, found: dict[str, Any], path: str) -> Recording:
    tracks = []
    for index, track in enumerate(info.tracks or (info,)):
        suffix = f"_{index}" if info.tracks else ""
        tracks.append(_track(track, found, suffix, path))
    return Recording(tuple(tracks), str(found.get("broken", "")))


def _track(info: StreamInfo, found: dict[str, Any], suffix: str, path: str) -> Track:
    names = [_name(info), "times", "gaps", *(["segments", "revised"] if info.segmented else [])]
    arrays = [found.get(name + suffix) for name in names]
    scales = found.get("scales" + suffix)
    data, times, gaps, *marks = (np.empty(0) if array is None else array for array in arrays)
    # All frames one behind the other, also where each is of one item, as runs are.
    stacked = replace(info, shape=(info.shape[0], None, *info.shape[2:]))
    whole = all(array is not None for array in arrays) and stacked.fits(data)
    items = data.shape[1:2]
    whole = whole and times.dtype == np.float64 and times.shape == items
    whole = whole and gaps.dtype == np.int64 and _ascends(gaps, *items)
    for mark, dtype in zip(marks, (np.int64, np.bool_), strict=False):
        whole = whole and mark.dtype == dtype and mark.shape == items
    whole = whole and (scales is None or (scales.dtype == np.float32 and scales.shape == items))
    if not whole:
        had = ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in found.items())
        raise MediaError(
            f"{path!r} has {had}; wanted {', '.join(name + suffix for name in names)} of {info}"
        )
    return Track(info, data, times, gaps, scales, *marks)


def _ascends(gaps: Any, items: int) -> bool:
    """Whether these are indices among so many items, each once."""
    return gaps.ndim == 1 and bool((np.diff(gaps, prepend=-1, append=items) > 0).all())
