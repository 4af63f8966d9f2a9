"""The nodes of an encoder: what brings a stream to what its model takes, and the encoder itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from streamenc.coding import defaults
from streamenc.coding.encode import Encode
from streamenc.engine.remote.remotemodel import RemoteCodec
from streamenc.errors import UsageError
from streamenc.graph.graph import Graph
from streamenc.graph.node import Transform
from streamenc.nodes.chunker import Chunker
from streamenc.nodes.codes.relayout import ToLayout
from streamenc.nodes.fit import Fit
from streamenc.nodes.gaps import Gaps
from streamenc.nodes.resample import Resample
from streamenc.nodes.runs import Runs

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.engine.engine import Engine
    from streamenc.engine.remote.remoteengine import RemoteEngine
    from streamenc.spec import StreamSpec


class Specified(Protocol):
    """What is known of an encoder without it."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def spec(self) -> StreamSpec: ...


def add_encoder(
    graph: Graph,
    engine: Engine | RemoteEngine,
    name: str,
    codec: Codec | RemoteCodec,
    after: str,
    *,
    waited_for: bool,
    live: bool | None = False,
    codebooks: int | None = None,
    hops: int | None = None,
    conceal_ms: float | None = None,
    dtype: str | None = None,
    runs: bool = False,
    layout: str | None = None,
    channel: str | int | None = None,
    size: str | None = None,
    fit: str | None = None,
    filter: str | None = None,
    max_age_ms: float | None = None,
    **edge: Any,
) -> str:
    """Adds them behind `after`; see Pipeline.encode, whose options these are.

    waited_for  Whether somebody waits for each frame.
    live        Whether `after` may drop frames; None where only opening tells.
    """
    add = partial(graph.transform, max_age_ms=max_age_ms)
    spec = codec.spec
    if hops is None:
        hops = defaults.hops_in_step(spec, waited_for)
    if conceal_ms is None:
        conceal_ms = defaults.conceal_ms(spec)
    nodes = preparation(
        codec,
        hops=hops,
        conceal_ms=conceal_ms,
        channel=channel,
        size=size,
        fit=fit,
        filter=filter,
    )
    if spec.input.kind == "video":
        if live and spec.limit:
            raise UsageError(
                f"{codec.name} takes at most {spec.limit} images a stream as it was loaded, "
                "and a live source has no end: load it with mode=window"
            )
        if live is not False:
            edge = edge or {**defaults.live_edge(spec), "if_live": live is None}
    elif spec.input.kind == "text" and runs:
        raise UsageError(f"runs are of streams without pauses; {codec.name} takes text")
    for number, (what, node) in enumerate(nodes.items()):
        after = add(f"{name}.{what}", node, after, **({} if number else edge))
    if nodes and (spec.input.kind == "audio" or conceal_ms or edge.get("policy") != "latest"):
        edge = {}  # what is dropped is dropped once, and before it is bridged
    encode = Encode(codec, engine, codebooks=codebooks, hops=hops, dtype=dtype)
    behind: Runs | ToLayout | None = Runs() if runs else None
    if layout not in (None, "books"):
        if runs:
            raise UsageError("runs and layout are two ways to lay codes out; take one of them")
        behind = ToLayout(layout, codebooks)
    if behind is None:
        return add(name, encode, after, **edge)
    return add(name, behind, add(f"{name}.encode", encode, after, **edge))


def preparation(
    codec: Specified,
    *,
    hops: int,
    conceal_ms: float = 0.0,
    channel: str | int | None = None,
    size: str | None = None,
    fit: str | None = None,
    filter: str | None = None,
) -> dict[str, Transform]:
    """What brings a stream to what an encoder takes, in this order: "resample", "gaps" and "chunk"
    for sound, "fit" and "gaps" for images, nothing for text. Raises UsageError."""
    spec = codec.spec
    gaps: dict[str, Transform] = {"gaps": Gaps(conceal_ms)} if conceal_ms else {}
    if spec.input.kind == "video":
        if channel is not None:
            raise UsageError(f"channel is of sound; {codec.name} takes images")
        return {"fit": Fit(**defaults.wanted_images(spec, size, fit, filter)), **gaps}
    if spec.input.kind == "text":
        given = {"channel": channel, "size": size, "fit": fit, "filter": filter}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise UsageError(f"{wrong[0]} is of sound or images; {codec.name} takes text")
        if gaps:
            raise UsageError(f"conceal_ms is of streams without pauses; {codec.name} takes text")
        return {}
    if (size, fit, filter) != (None, None, None):
        raise UsageError(f"size, fit and filter are of images; {codec.name} takes sound")
    resample = Resample(int(spec.input.rate), 2 if spec.input.channels == 2 else 1, channel=channel)
    return {"resample": resample, **gaps, "chunk": Chunker(spec.lead, spec.hop * hops)}
