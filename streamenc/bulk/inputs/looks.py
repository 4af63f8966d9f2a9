"""Which kind of data set an address is, by its look."""

from __future__ import annotations

import inspect
import itertools
import json
import re
import zlib
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from streamenc.addresses import shown_address
from streamenc.bulk.inputs import filesystem
from streamenc.bulk.inputs.datainput import Input
from streamenc.errors import UsageError

HEAD_BYTES = 1 << 16
TARS = (".tar", ".tar.gz", ".tgz")
TABLES = (".parquet", ".pq", ".arrow")
MOST_NAMES = 1000  # of a folder, that are looked at


class Place:
    """What lies at an address; each thing is looked at when it is first asked for.

    Raises UsageError and MediaError where it cannot be looked at.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        path = address.partition("?")[0] if filesystem.is_remote(address) else address
        self.name = path.rstrip("/").rpartition("/")[2].lower()

    @cached_property
    def is_pattern(self) -> bool:
        """Whether it stands for several files, with * or ?."""
        return filesystem.is_pattern(self.address)

    @cached_property
    def is_folder(self) -> bool:
        return not self.is_pattern and filesystem.is_folder(self.address)

    @cached_property
    def is_file(self) -> bool:
        return not self.is_pattern and not self.is_folder and filesystem.exists(self.address)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of what lies in a folder, the first so many in their order; () of all else."""
        if not self.is_folder:
            return ()
        found = itertools.islice(filesystem.names_in(self.address), MOST_NAMES)
        return tuple(name for name, _ in found)

    @cached_property
    def head(self) -> bytes:
        """The first bytes of a file, unzipped where that is needed; b"" of all else."""
        if not self.is_file:
            return b""
        with filesystem.opened(self.address) as file, filesystem.reading(self.address):
            head = file.read(HEAD_BYTES)
        if not head.startswith(b"\x1f\x8b"):
            return head
        try:
            return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS).decompress(head, HEAD_BYTES)
        except zlib.error:
            return head

    @cached_property
    def record(self) -> dict[str, Any]:
        """The first line of a file, where that is an object of JSON; {} of all else."""
        line = next((line for line in self.head.split(b"\n") if line.strip()), b"")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def ends(self, *suffixes: str) -> bool:
        """Whether its name ends with one of them, also with .gz behind it."""
        return self.name.removesuffix(".gz").endswith(suffixes)


class Kind(NamedTuple):
    """A kind of data set.

    Attributes:
        where: "module:class" of its Input, imported when it is used.
        what: For people who ask what is known.
        test: Whether an address looks like one; the first kind of KINDS that says so has it.
    """

    where: str
    what: str
    test: Callable[[Place], bool]


def _has_tables(place: Place) -> bool:
    names = place.names
    if any(name.endswith(TABLES) or name in ("state.json", "dataset_dict.json") for name in names):
        return True
    # The Hub's folders have them further within.
    if "README.md" not in names and "data" not in names:
        return False
    below = place.address.rstrip("/")
    return any(
        filesystem.matching(f"{below}/{stars}{ending}")
        for ending in TABLES
        for stars in ("*/*", "*/*/*")
    )


KINDS: dict[str, Kind] = {
    "lerobot": Kind(
        "streamenc.bulk.inputs.tables.lerobot:LeRobotInput",
        "a folder of LeRobot's episodes, version 3",
        lambda place: (
            "meta" in place.names
            and filesystem.exists(place.address.rstrip("/") + "/meta/info.json")
        ),
    ),
    "lhotse-shar": Kind(
        "streamenc.bulk.inputs.archives.lhotseshar:LhotseSharInput",
        "a folder of Lhotse Shar: cuts.000000.jsonl.gz beside recording.000000.tar",
        lambda place: any(re.match(r"cuts\.[^.]+\.jsonl", name) for name in place.names),
    ),
    "webdataset": Kind(
        "streamenc.bulk.inputs.archives.wdstars:WebDatasetInput",
        "tars of WebDataset: one, a pattern, braces ({000..999}.tar), or a folder of them",
        lambda place: place.ends(*TARS) or any(name.endswith(TARS) for name in place.names),
    ),
    "huggingface": Kind(
        "streamenc.bulk.inputs.tables.hffolder:HuggingFaceInput",
        "a folder with Parquet, as on the Hub of Hugging Face, or saved by `datasets`",
        _has_tables,
    ),
    "parquet": Kind(
        "streamenc.bulk.inputs.tables.tables:TableInput",
        "Parquet or Arrow files with a column of sound or images: one, a pattern, or braces",
        lambda place: place.ends(*TABLES),
    ),
    "wav.scp": Kind(
        "streamenc.bulk.inputs.manifests.wavscp:WavScp",
        "wav.scp of Kaldi, or the folder that holds it, perhaps with `segments`",
        lambda place: place.ends(".scp") or "wav.scp" in place.names,
    ),
    "lhotse": Kind(
        "streamenc.bulk.inputs.manifests.lhotsecuts:LhotseCuts",
        "cuts or recordings of Lhotse as JSON lines",
        lambda place: (
            bool(place.record.keys() & {"recording", "sources", "tracks"})
            or place.record.get("type") in ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")
        ),
    ),
    "nemo": Kind(
        "streamenc.bulk.inputs.manifests.nemomanifest:NemoManifest",
        "JSON lines as NeMo has them, each with an audio_filepath",
        lambda place: bool(
            place.record.keys() & {"audio_filepath", "video_filepath", "image_filepath"}
        ),
    ),
    "folder": Kind(
        "streamenc.bulk.inputs.folder:FolderInput",
        "a folder or a pattern (*.flac) of media files, or one such file",
        lambda place: place.is_folder or place.is_pattern or _is_media(place),
    ),
}


def look(address: str) -> str:
    """The kind of data set that `address` is, by its name and its first bytes.

    Raises UsageError where it is none that is known, and MediaError where it cannot be looked at.
    """
    place = Place(address)
    for kind, (_, _, test) in KINDS.items():
        if test(place):
            return kind
    shown = shown_address(address)
    known = "; ".join(f"{what} ({kind})" for kind, (_, what, _) in KINDS.items())
    if not place.is_file:
        raise UsageError(f"there is no {shown!r}; a data set is {known}")
    raise UsageError(
        f"{shown!r} is no data set that is known, it begins with {place.head[:32]!r}; known are "
        f"{known}"
    )


def open_input(kind: str, address: str, takes: str, kept: Path, **options: Any) -> Input:
    """The input of a kind; `takes` and `kept`: see Input.

    Raises UsageError for a kind or an option that is unknown.
    """
    if kind not in KINDS:
        raise UsageError(f"got a data set of kind {kind!r}; known are {', '.join(KINDS)}")
    module, _, name = KINDS[kind].where.partition(":")
    found: type[Input] = getattr(import_module(module), name)
    known = options_of(found)
    if wrong := next((option for option in options if option not in known), None):
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UsageError(f"got the option {wrong!r} for a data set of kind {kind!r}; {has}")
    return found(address, takes, kept, **options)


def options_of(kind: type[Input]) -> list[str]:
    """The names of the options of a kind of data set."""
    taken = inspect.signature(Input.__init__).parameters
    return [
        name
        for each in reversed(kind.__mro__)
        if issubclass(each, Input) and "__init__" in vars(each)
        for name in inspect.signature(vars(each)["__init__"]).parameters
        if name not in taken
    ]


def _is_media(place: Place) -> bool:
    from streamenc.bulk.inputs.folder import SUFFIXES

    return place.is_file and place.ends(*SUFFIXES)
