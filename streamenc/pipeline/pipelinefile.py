"""Pipeline files: TOML with a table for each node, checked before anything is loaded."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import Meta, Struct

from streamenc.addresses import check_name, filled_in, filled_in_options
from streamenc.errors import UsageError
from streamenc.graph.edge import Policy
from streamenc.nodes.gaps import MAX_CONCEAL_MS
from streamenc.nodes.resample import Quality, Resample
from streamenc.options import written

if TYPE_CHECKING:
    from streamenc.pipeline.builder import Pipeline

MAX_PIPELINE_BYTES = 1 << 20
# A dot between the parts of a key, or what looks like one: no line of a pipeline has so many.
DOT, MAX_DOTS = re.compile(r"""[\w"'-][ \t]*\.[ \t]*(?=[\w"'-])"""), 32
# What TOML calls the types that an error names.
TOML_TYPES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "array": "an array",
    "object": "a table",
}

T = TypeVar("T", bound=Struct)
Count = Annotated[int, Meta(ge=1)]
Track = Annotated[int, Meta(ge=0)]
Milliseconds = Annotated[float, Meta(ge=0)]
Age = Annotated[float, Meta(gt=0)]
ConcealMs = Annotated[float, Meta(ge=0, le=MAX_CONCEAL_MS)]


class NodeTable(Struct, kw_only=True):
    """A node of any kind; each kind adds itself to a pipeline."""

    def add(self, name: str, pipeline: Pipeline) -> None:
        raise NotImplementedError


class SourceTable(NodeTable, kw_only=True):
    source: str
    kind: str = ""
    realtime: bool = False
    align: bool = False
    latency_ms: float = 0.0
    options: dict[str, Any] = {}

    def add(self, name: str, pipeline: Pipeline) -> None:
        pipeline.source(
            name,
            filled_in(self.source),
            kind=self.kind,
            realtime=self.realtime,
            align=self.align,
            latency_ms=self.latency_ms,
            **filled_in_options(self.options),
        )


class EdgeTable(NodeTable, kw_only=True):
    """With the edge in front of it."""

    capacity: Count | None = None
    policy: Policy | None = None
    max_age_ms: Age | None = None

    @property
    def edge(self) -> dict[str, Any]:
        given = {
            "capacity": self.capacity,
            "policy": self.policy,
            "max_age_ms": self.max_age_ms,
        }
        return {key: value for key, value in given.items() if value is not None}


class AfterTable(EdgeTable, kw_only=True):
    """Of one input."""

    after: str


class ResampleTable(AfterTable, kw_only=True):
    resample: Count
    channels: Literal[1, 2] | None = None
    quality: Quality = "HQ"
    channel: str | int | None = None

    def add(self, name: str, pipeline: Pipeline) -> None:
        node = Resample(self.resample, self.channels, self.quality, self.channel)
        pipeline.graph.transform(name, node, self.after, **self.edge)


class ModelTable(AfterTable, kw_only=True):
    device: str = "auto"
    options: dict[str, Any] = {}

    def loaded(self, model: str, part: Literal["encoder", "decoder"]) -> Any:
        from streamenc.registry import load

        return load(model, part=part, device=self.device, **self.options)


class EncodeTable(ModelTable, kw_only=True):
    encode: str
    codebooks: Count | None = None
    hops: Count | None = None
    conceal_ms: ConcealMs | None = None
    dtype: str | None = None
    runs: bool = False
    layout: str | None = None
    track: Track | None = None
    channel: str | int | None = None
    size: str | None = None
    fit: str | None = None
    filter: str | None = None

    def add(self, name: str, pipeline: Pipeline) -> None:
        pipeline.encode(
            name,
            self.loaded(self.encode, "encoder"),
            self.after,
            codebooks=self.codebooks,
            hops=self.hops,
            conceal_ms=self.conceal_ms,
            dtype=self.dtype,
            runs=self.runs,
            layout=self.layout,
            track=self.track,
            channel=self.channel,
            size=self.size,
            fit=self.fit,
            filter=self.filter,
            **self.edge,
        )


class DecodeTable(ModelTable, kw_only=True):
    decode: str
    track: Track | None = None
    layout: str = ""

    def add(self, name: str, pipeline: Pipeline) -> None:
        codec = self.loaded(self.decode, "decoder") if self.decode else None
        pipeline.decode(
            name,
            codec,
            self.after,
            track=self.track,
            device=self.device,
            layout=self.layout,
            **self.edge,
        )


class VadTable(AfterTable, kw_only=True):
    vad: Literal["speech", "events"]
    threshold: float = 0.5
    silence_ms: Milliseconds = 500.0
    padding_ms: Milliseconds = 100.0
    engine: Literal["auto", "silero", "energy"] = "auto"

    def add(self, name: str, pipeline: Pipeline) -> None:
        pipeline.vad(
            name,
            self.after,
            self.vad,
            edge=self.edge,
            threshold=self.threshold,
            silence_ms=self.silence_ms,
            padding_ms=self.padding_ms,
            engine=self.engine,
        )


class CustomTable(AfterTable, kw_only=True):
    node: str
    options: dict[str, Any] = {}

    def add(self, name: str, pipeline: Pipeline) -> None:
        pipeline.node(name, self.node, self.after, options=self.options, **self.edge)


class MergeTable(EdgeTable, kw_only=True):
    merge: list[str]
    max_wait_ms: Milliseconds | None = None

    def add(self, name: str, pipeline: Pipeline) -> None:
        pipeline.merge(name, self.merge, max_wait_ms=self.max_wait_ms, **self.edge)


class SinkTable(AfterTable, kw_only=True):
    sink: str
    options: dict[str, Any] = {}

    def add(self, name: str, pipeline: Pipeline) -> None:
        options = filled_in_options(self.options)
        pipeline.sink(name, filled_in(self.sink), self.after, options=options, **self.edge)


KINDS: dict[str, type[NodeTable]] = {
    "source": SourceTable,
    "resample": ResampleTable,
    "encode": EncodeTable,
    "decode": DecodeTable,
    "vad": VadTable,
    "node": CustomTable,
    "merge": MergeTable,
    "sink": SinkTable,
}


class PipelineFile(Struct, kw_only=True):
    """What a file holds; sources come first: whether one is live decides how encoders step."""

    deadline_ms: float | None = None
    max_age_ms: Age | None = None
    nodes: dict[str, Any]

    def tables(self, path: Path) -> list[tuple[str, NodeTable]]:
        """The nodes by name. Raises UsageError naming the file, the node and the key."""
        tables = [(name, _node(f"{path}: node {name!r}", t)) for name, t in self.nodes.items()]
        return sorted(tables, key=lambda item: not isinstance(item[1], SourceTable))


def read_pipeline(path: Path) -> PipelineFile:
    """The file, its tables not yet checked. Raises UsageError for what is no pipeline."""
    check_name(str(path))
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PIPELINE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read pipeline {path}: {error.strerror}") from error
    if len(text) > MAX_PIPELINE_BYTES:
        raise UsageError(f"{path} is larger than the {MAX_PIPELINE_BYTES} bytes of a pipeline file")
    try:
        found = tomllib.loads(_shallow(text.decode()))
    except ValueError as error:
        raise UsageError(f"{path} is no TOML: {error}") from error
    except RecursionError:
        raise UsageError(f"{path} has tables or arrays in each other, hundreds deep") from None
    unknown = found.keys() - {"deadline_ms", "max_age_ms", "nodes"}
    if unknown or not isinstance(found.get("nodes"), dict) or not found["nodes"]:
        what = f"unknown {sorted(unknown)}" if unknown else "no [nodes.NAME] tables"
        raise UsageError(
            f"{path}: {what}; a pipeline has deadline_ms, max_age_ms and [nodes.NAME] tables"
        )
    return _converted(str(path), found, PipelineFile)


def _shallow(text: str) -> str:
    """`text`, where no key of it has many parts: `a.a.a...` costs a parser the square of them.

    Raises ValueError.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MAX_DOTS and len(DOT.findall(line)) > MAX_DOTS:
            raise ValueError(f"line {number} has more than {MAX_DOTS} dots between names")
    return text


def _node(where: str, table: Any) -> NodeTable:
    kinds = [key for key in KINDS if isinstance(table, Mapping) and key in table]
    if len(kinds) != 1:
        raise UsageError(f"{where} must have exactly one of {', '.join(KINDS)}; has {kinds}")
    kind = kinds[0]
    shape = KINDS[kind]
    keys = shape.__struct_fields__
    if unknown := table.keys() - set(keys):
        known = ", ".join(sorted(set(keys) - {kind}))
        raise UsageError(f"{where} has unknown {sorted(unknown)}; a {kind} knows {known}")
    if "after" in keys and "after" not in table:
        raise UsageError(
            f"{where} lacks `after`, the name of the node that it takes its frames from"
        )
    return _converted(where, table, shape)


def _converted(where: str, table: Mapping[str, Any], shape: type[T]) -> T:
    """Strictly: true is no number, and a number no text. Raises UsageError."""
    try:
        return msgspec.convert(table, shape)
    except msgspec.ValidationError as error:
        raise UsageError(f"{where}: {_explained(str(error), table, shape)}") from error


def _explained(error: str, table: Mapping[str, Any], shape: type[Struct]) -> str:
    """msgspec's "Expected `int | null`, got `str` - at `$.hops`", with what came."""
    wanted, _, at = error.partition(" - at `$.")
    path = at.rstrip("`")
    key, *indices = re.findall(r"\w+", path)
    value = table[key]
    for index in indices:
        value = value[int(index)]
    if wanted.startswith("Invalid enum value"):
        choices = get_type_hints(shape)[key]
        wanted = f"one of {', '.join(map(str, _choices(choices)))}"
    else:
        found = re.match(r"Expected `(\w+)[^`]*`([^,]*)", wanted)
        wanted = TOML_TYPES[found[1]] + found[2] if found else "a number of 64 bits"
    return f"{path!r} must be {wanted}; got {written(value)}"


def _choices(hint: Any) -> tuple[Any, ...]:
    """Of Literal["a", "b"] | None: a and b."""
    literal = next((part for part in get_args(hint) if get_args(part)), hint)
    return get_args(literal)
