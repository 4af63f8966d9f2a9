"""Pipeline: graphs by URL and by model name, for the command line and for pipeline files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio

from streamenc import io
from streamenc.coding import defaults
from streamenc.errors import FitError, UsageError
from streamenc.graph.edge import Policy
from streamenc.graph.graph import Graph, check_no_event_loop
from streamenc.graph.node import AsyncTransform, Sink, Source, Transform
from streamenc.graph.report import GraphReport
from streamenc.nodes.align import Align, Epoch
from streamenc.nodes.function import FunctionSink, FunctionTransform, InfoOf
from streamenc.nodes.named import named_node
from streamenc.nodes.pace import Pace
from streamenc.nodes.select import Select
from streamenc.options import choice
from streamenc.pipeline.pipelinefile import NodeTable, read_pipeline

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.engine.engine import Engine
    from streamenc.models.model import Model
    from streamenc.spec import StreamSpec

log = logging.getLogger(__name__)


class Pipeline:
    """A graph with one engine for all its models. A context manager: leaving it ends the engine.

    with Pipeline(deadline_ms=200) as pipeline:
        mic = pipeline.source("mic", "mic:")
        codes = pipeline.encode("mimi", streamenc.load("kyutai/mimi"), mic)
        pipeline.sink("out", "zmq+tcp://127.0.0.1:5555", codes)
        print(pipeline.run_blocking())

    In a coroutine or a notebook, the last line is `print(await pipeline.run())`. What adds a node
    takes its `name`, and `after`: whose frames come in. `edge` is `capacity`, `policy` and
    `max_age_ms` of the edge in front of it. All raise UsageError for what does not fit.

    Args:
        deadline_ms: See Graph, which counts frames that take longer.
        max_age_ms: See Graph, which gives up frames of live sources that are older.
        overwrite: Whether sinks may replace files; where not, none does, whatever its options say.
    """

    def __init__(
        self,
        *,
        deadline_ms: float | None = None,
        max_age_ms: float | None = None,
        overwrite: bool = True,
    ) -> None:
        self.graph = Graph(deadline_ms=deadline_ms, max_age_ms=max_age_ms)
        self.sources: list[Source] = []
        self.inputs: list[str] = []  # what they read
        self.sinks: dict[str, str] = {}  # by name, what they write to
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._engine: Engine | None = None
        self._live_nodes: set[str] = set()  # which may drop frames
        self._perhaps_live: set[str] = set()  # and those of which only opening tells
        self._in_time = False  # whether a source gives its frames when they are due
        self._gives: dict[str, str] = {}  # by source, the one kind of media that it gives
        self._unaligned: list[str] = []  # devices whose clock is their own
        self._epoch: Epoch | None = None
        # Models of live streams, each with the most codebooks and the number of its nodes.
        self._models: dict[Model, tuple[int | None, int]] = {}
        self.devices: list[str] = []  # which models compute on, in order
        self.live = False  # whether somebody waits for each frame

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    async def warm(self) -> None:
        """Before live sources are opened: what models would do at their first steps, see
        Engine.warm. Nothing where no source is live."""
        for model, (codebooks, nodes) in self._models.items() if self.live else ():
            await self.engine.warm(model, codebooks=codebooks, sessions=nodes)

    async def run(self, *, handle_signals: bool = False) -> GraphReport:
        """Runs the graph to its end; see Graph.run."""
        await self.warm()
        return await self.graph.run(handle_signals=handle_signals)

    def run_blocking(self, *, handle_signals: bool = True) -> GraphReport:
        """`run` for programs without an event loop; see Graph.run_blocking."""
        check_no_event_loop()
        return anyio.run(partial(self.run, handle_signals=handle_signals))

    @property
    def engine(self) -> Engine:
        """Started when the first model is added."""
        if self._engine is None:
            from streamenc.engine.engine import Engine

            self._engine = self._stack.enter_context(Engine())
        return self._engine

    def source(
        self,
        name: str,
        target: str,
        *,
        kind: str = "",
        realtime: bool = False,
        align: bool = False,
        latency_ms: float = 0.0,
        **options: Any,
    ) -> str:
        """Adds the source that a path or URL names.

        Args:
            target: A path, "-", or a URL; `options` are what stands in its query.
            kind: What is taken of a file or media URL: its "audio", as with "", its "video",
                both, "av", as the tracks 0 and 1 of a mux, or the "text" that it is, or that its
                subtitles are.
            realtime: Plays a file like a microphone: the source is `name.file`, and `name` paces
                it.
            align: Brings a live device onto the graph's clock, see Align: for what is merged with
                another device. The source is `name.device`.
            latency_ms: For `align`: how long the device takes.
        """
        source = io.source(target, kind=kind, **options)
        self.sources.append(source)
        self.inputs.append(target)
        self._gives[name] = kind or io.source_entry(target).kind
        self.live = self.live or defaults.is_live(source, realtime)
        self._in_time = self._in_time or defaults.in_time(source, realtime)
        not_live = ""
        if source.live or source.live is None:
            (self._live_nodes if source.live else self._perhaps_live).add(name)
        if align and not realtime and not source.live:
            not_live = (
                f"{name}: align is for what comes when it happens: a device, or a file with "
                "realtime"
            )
            if source.live is not None:
                raise UsageError(not_live)
        if io.source_entry(target).device and not align:
            self._unaligned.append(name)
        behind: dict[str, Transform | AsyncTransform] = {}
        if realtime and not source.live:
            behind["file"] = Pace()
        if align:
            self._epoch = self._epoch or Epoch()
            behind["device"] = Align(self._epoch, latency_ms=latency_ms)
        # Each node is named after what it takes; the last one has the name that was asked for.
        names = [*(f"{name}.{suffix}" for suffix in behind), name]
        made = self.graph.source(names[0], source)
        for node, named in zip(behind.values(), names[1:], strict=True):
            made = self.graph.transform(named, node, made, needs_live=not_live)
        return made

    def encode(
        self,
        name: str,
        codec: Codec,
        after: str,
        *,
        codebooks: int | None = None,
        hops: int | None = None,
        conceal_ms: float | None = None,
        dtype: str | None = None,
        runs: bool = False,
        layout: str | None = None,
        track: int | None = None,
        channel: str | int | None = None,
        size: str | None = None,
        fit: str | None = None,
        filter: str | None = None,
        max_age_ms: float | None = None,
        **edge: Any,
    ) -> str:
        """Adds what an encoder needs and the encoder itself: before one of sound `name.resample`
        and `name.chunk`, before one of images `name.fit`, and where gaps are concealed
        `name.gaps` behind the first of them.

        A live source of images that is faster than the encoder loses the oldest ones, unless
        `edge` says otherwise: a model that takes each image alone always gets the latest.

        Args:
            codebooks: How many come out, at most; None for all.
            hops: Hops in a step; None for 1 where frames are waited for, or merged with those of
                another track; about a second for other files.
            conceal_ms: Gaps up to this do not start the encoder anew: sound gets silence, images
                are bridged. None for 0, and 1 s for images.
            dtype: Of features; see Encode.
            runs: Adds Runs after it, as `name`; the encoder is `name.encode`.
            layout: "flat", "delay" or "delay:0,1,1,1" adds ToLayout after it, likewise.
            track: Which track of a mux it encodes: `name.select`.
            channel: Which channel of the sound it encodes, from 0, or which ones, "0,1"; None for
                a mix of all, see Resample.
            size: How images are brought to size, see Fit: "WIDTHxHEIGHT"; "crop", "pad" or
                "stretch"; "bicubic", ... None for what the model was published with, or else its
                centre cut to a size that it takes.
            fit: See `size`.
            filter: See `size`.
            max_age_ms: Of all edges that it adds, see Channel; None for the pipeline's own.
        """
        from streamenc.coding.chain import add_encoder

        gives, takes = self._gives.get(after, ""), codec.spec.input.kind
        if gives and gives != takes and "text" in (gives, takes):
            words = {"audio": "sound", "video": "images", "av": "sound and images"}
            raise UsageError(
                f"{name}: {codec.name} encodes {words.get(takes, takes)}, and {after} gives "
                f"{words.get(gives, gives)}: give it a source of {words.get(takes, takes)}"
                + (", or say kind = text where it holds text" if takes == "text" else "")
            )
        if track is not None and hops is None:
            hops = 1
        after = self._selected(name, after, track)
        self._note(codec.encoder, codebooks, hops)
        return add_encoder(
            self.graph,
            self.engine,
            name,
            codec,
            after,
            waited_for=self.live,
            live=None if after in self._perhaps_live else after in self._live_nodes,
            codebooks=codebooks,
            hops=hops,
            conceal_ms=conceal_ms,
            dtype=dtype,
            runs=runs,
            layout=layout,
            channel=channel,
            size=size,
            fit=fit,
            filter=filter,
            max_age_ms=max_age_ms,
            **edge,
        )

    def decode(
        self,
        name: str,
        codec: Codec | None,
        after: str,
        *,
        hops: int | None = None,
        track: int | None = None,
        device: str = "cpu",
        layout: str = "",
        **edge: Any,
    ) -> str:
        """Adds a decoder; None takes the model that the stream names, where that is a listed one: a
        stranger's stream must not choose what is fetched and opened here.

        Args:
            hops: See `encode`; about a second of files, and of tracks of a recording.
            track: Which track of a mux it decodes.
            device: What the model that the stream names is loaded on; see streamenc.load.
            layout: How codes lie in the stream, see FromLayout; "" where the stream says it.
        """
        from streamenc.coding.decode import Decode

        def hops_of(spec: StreamSpec) -> int:
            return hops or defaults.hops_in_step(spec, self.live)

        after = self._selected(name, after, track)
        if codec is not None:
            self._note(codec.decoder, None, hops)
        known = codec or partial(listed_decoder, device=device)
        decode = Decode(known, self.engine, hops=hops_of, layout=layout)
        return self.graph.transform(name, decode, after, **edge)

    def vad(
        self, name: str, after: str, gives: str = "speech", *, edge: Any = None, **options: Any
    ) -> str:
        """Adds a detector of speech behind a node that gives sound.

        Args:
            gives: "speech" lets only speech through, see Vad; "events" gives "started" and
                "stopped" as text, see VadEvents.
            edge: A mapping: `capacity`, `policy` and `max_age_ms` of the edge in front of it.
            options: `threshold`, `silence_ms`, `padding_ms` and `engine`.
        """
        from streamenc.nodes.speech.voiceactivity import Vad, VadEvents

        kind = {"speech": Vad, "events": VadEvents}[choice("vad", gives, ("speech", "events"))]
        known = ("threshold", "silence_ms", "padding_ms", "engine")
        if unknown := options.keys() - {*known}:
            raise UsageError(f"vad has no option {min(unknown)!r}; it has {', '.join(known)}")
        return self.transform(name, kind(**options), after, **(edge or {}))

    def merge(
        self,
        name: str,
        inputs: Sequence[str],
        *,
        max_wait_ms: float | None = None,
        capacity: int = defaults.MERGED_FRAMES,
        policy: Policy = "block",
        max_age_ms: float | None = None,
    ) -> str:
        """Adds a merge in order of time, see Graph.merge. The sources are added before it.

        Args:
            max_wait_ms: None for half a second where a source does not wait, and for a minute where
                all do: there a slow encoder is worth waiting for.
            capacity: Frames, enough for what one encoder is ahead of the other.
        """
        if max_wait_ms is None:
            max_wait_ms = defaults.merge_wait_ms(self._in_time)
        if len(self._unaligned) > 1:
            log.warning(
                "%s are devices with clocks of their own: align = true brings them onto one, or "
                "they are merged in the wrong order",
                " and ".join(self._unaligned),
            )
        return self.graph.merge(
            name,
            inputs,
            max_wait_ms=max_wait_ms,
            capacity=capacity,
            policy=policy,
            max_age_ms=max_age_ms,
        )

    def _note(self, model: Model, codebooks: int | None, hops: int | None) -> None:
        """Takes note of a model that steps in a node of its own."""
        device = str(model.like.device)
        if device not in self.devices:
            self.devices.append(device)
        if hops not in (None, 1):
            return
        most, nodes = self._models.get(model, (codebooks, 0))
        most = None if None in (most, codebooks) else max(most or 0, codebooks or 0)
        self._models[model] = most, nodes + 1

    def _selected(self, name: str, after: str, track: int | None) -> str:
        if track is None:
            return after
        selected = self.graph.transform(f"{name}.select", Select(track), after)
        for known in (self._live_nodes, self._perhaps_live):
            if after in known:
                known.add(selected)
        return selected

    def node(
        self,
        name: str,
        what: str,
        after: str,
        *,
        options: Mapping[str, Any] | None = None,
        **edge: Any,
    ) -> str:
        """Adds a node from outside; one that is made already goes to `graph.transform`.

        Args:
            what: A name that a package or `streamenc.register` gave it, or "package.module:Class",
                which imports the module.
            options: What the class is called with.
        """
        return self.transform(name, named_node(what, options or {}), after, **edge)

    def transform(
        self,
        name: str,
        node: Transform | AsyncTransform | Callable[..., Any],
        after: str,
        *,
        info: InfoOf | None = None,
        blocking: bool = False,
        **edge: Any,
    ) -> str:
        """Adds a node that is made already, or a function.

            pipeline.transform("louder", lambda frame: 2 * frame.data, "mic")

        A function takes a frame, or a frame and its StreamInfo, and gives None for nothing, an
        array in place of the frame's data, a Frame, or several Frames. It may be a coroutine
        function.

        Args:
            info: Of a function: what goes out of it, where that is not what comes in; or a function
                of what comes in that says it.
            blocking: Calls the function in a thread, as it takes longer than milliseconds.
        """
        if not isinstance(node, Transform | AsyncTransform):
            node = FunctionTransform(node, info=info, blocking=blocking)
        elif info is not None or blocking:
            raise UsageError(
                f"{name}: info and blocking are of functions; a node has `open` and `blocking`"
            )
        made = self.graph.transform(name, node, after, **edge)
        for known in (self._live_nodes, self._perhaps_live):
            if after in known:
                known.add(made)
        return made

    def sink(
        self,
        name: str,
        target: str | Path | Sink | Callable[..., Any],
        after: str,
        *,
        options: Any = None,
        blocking: bool = False,
        **edge: Any,
    ) -> str:
        """Adds the sink that a path or URL names, one that is made already, or a function.

            pipeline.sink("print", lambda frame: print(frame.data), "mimi")

        Args:
            options: Of the sink that is named.
            blocking: Calls the function in a thread, as it takes longer than milliseconds. A
                coroutine function is awaited.
        """
        if options and not isinstance(target, str | Path):
            raise UsageError(f"{name}: options are of a path or URL; got {target!r}")
        if blocking and isinstance(target, str | Path | Sink):
            raise UsageError(f"{name}: blocking is of functions; got {target!r}")
        if isinstance(target, str | Path):
            self.sinks[name] = str(target)
            if not self._overwrite and io.takes_overwrite(str(target)):
                options = {**(options or {}), "overwrite": False}
            sink = io.sink(str(target), **(options or {}))
        else:
            sink = target if isinstance(target, Sink) else FunctionSink(target, blocking=blocking)
        return self.graph.sink(name, sink, after, **edge)

    @classmethod
    def from_toml(cls, path: str | Path, *, overwrite: bool = True) -> Self:
        """Reads a pipeline file; see `streamenc run --help` for its form.

        Args:
            overwrite: Whether sinks may replace files.

        Raises:
            UsageError: Naming the node and the key that is wrong.
        """
        path = Path(path)
        file = read_pipeline(path)
        tables = file.tables(path)
        pipeline = cls(
            deadline_ms=file.deadline_ms, max_age_ms=file.max_age_ms, overwrite=overwrite
        )
        try:
            for name, table in tables:
                pipeline._add(path, name, table)
        except BaseException:  # an engine that has started ends, and the error goes on
            pipeline._stack.close()
            raise
        return pipeline

    def _add(self, path: Path, name: str, table: NodeTable) -> None:
        try:
            table.add(name, self)
        except UsageError as error:
            raise UsageError(f"{path}: node {name!r}: {error}") from error


def listed_decoder(name: str, device: str = "cpu") -> Codec:
    """The model of that name, for Decode. Raises FitError where it is none of the listed ones.

    Of streamenc's own: no stream decides which code of others is imported.
    """
    from streamenc.models.families import LISTED
    from streamenc.registry import load

    if name not in LISTED:
        alike = [listed for listed in LISTED if listed.rpartition("/")[2] == name]
        raise FitError(
            (
                f"the stream was made by {name!r}, which is none of the listed models"
                if name
                else "the stream does not say which model made it"
            )
            + "; name the model to decode it with, by its folder, file or Hub name: -m NAME"
            + (f" (perhaps {' or '.join(alike)})" if alike else "")
            + ". No stream chooses what is opened here"
        )
    return load(name, part="decoder", device=device)
