"""The nodes of an encoder: what brings a stream to what its model takes, and the encoder itself."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from streamenc.coding import defaults
from streamenc.coding.encode import Encode
from streamenc.errors import UsageError
from streamenc.graph.graph import Graph
from streamenc.nodes.chunker import Chunker
from streamenc.nodes.codes.relayout import ToLayout
from streamenc.nodes.fit import Fit
from streamenc.nodes.gaps import Gaps
from streamenc.nodes.resample import Resample
from streamenc.nodes.runs import Runs

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.engine.engine import Engine


def add_encoder(
    graph: Graph,
    engine: Engine,
    name: str,
    codec: Codec,
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
    if spec.input.kind == "video":
        if channel is not None:
            raise UsageError(f"channel is of sound; {codec.name} takes images")
        if live and spec.limit:
            raise UsageError(
                f"{codec.name} takes at most {spec.limit} images a stream as it was loaded, "
                "and a live source has no end: load it with mode=window"
            )
        node = Fit(**defaults.wanted_images(spec, size, fit, filter))
        if live is not False:
            edge = edge or {**defaults.live_edge(spec), "if_live": live is None}
        after = add(f"{name}.fit", node, after, **edge)
        if conceal_ms:
            after = add(f"{name}.gaps", Gaps(conceal_ms), after)
        if conceal_ms or edge.get("policy") != "latest":
            edge = {}  # what is dropped is dropped once, and before it is bridged
    elif spec.input.kind == "text":
        given = {"channel": channel, "size": size, "fit": fit, "filter": filter}
        if wrong := [option for option, value in given.items() if value is not None]:
            raise UsageError(f"{wrong[0]} is of sound or images; {codec.name} takes text")
        if conceal_ms or runs:
            raise UsageError(
                f"conceal_ms and runs are of streams without pauses; {codec.name} takes text"
            )
    else:
        if (size, fit, filter) != (None, None, None):
            raise UsageError(f"size, fit and filter are of images; {codec.name} takes sound")
        resample = Resample(
            int(spec.input.rate), 2 if spec.input.channels == 2 else 1, channel=channel
        )
        chunker = Chunker(spec.lead, spec.hop * hops)
        after = add(f"{name}.resample", resample, after, **edge)
        if conceal_ms:
            after = add(f"{name}.gaps", Gaps(conceal_ms), after)
        after = add(f"{name}.chunk", chunker, after)
        edge = {}
    encode = Encode(codec, engine, codebooks=codebooks, hops=hops, dtype=dtype)
    behind: Runs | ToLayout | None = Runs() if runs else None
    if layout not in (None, "books"):
        if runs:
            raise UsageError("runs and layout are two ways to lay codes out; take one of them")
        behind = ToLayout(layout, codebooks)
    if behind is None:
        return add(name, encode, after, **edge)
    return add(name, behind, add(f"{name}.encode", encode, after, **edge))
