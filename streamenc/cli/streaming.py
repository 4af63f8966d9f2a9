"""The commands that run a graph: encode, decode, listen and run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamenc.addresses import filled_in, shown_address
from streamenc.cli.app import app, examples
from streamenc.cli.common import check_outputs, load_codec, log, named_values, run_pipeline
from streamenc.cli.facts.completion import complete_sink, complete_source
from streamenc.cli.parameters import (
    Channel,
    Deadline,
    Decoder,
    Decoders,
    Device,
    Filter,
    Fit,
    Layer,
    Layout,
    MaxAge,
    Model,
    ModelOptions,
    Overwrite,
    Quiet,
    Realtime,
    Revision,
    Size,
    Stats,
    Threads,
    Units,
    Vad,
    VadOptions,
    Verbose,
    VideoOptions,
)
from streamenc.errors import UsageError
from streamenc.models.families import DEFAULT


@app.command(
    epilog=examples(
        """
        streamenc encode talk.flac tokens.arrows
        streamenc encode mic: zmq+tcp://127.0.0.1:5555 --model kyutai/mimi --codebooks 8
        streamenc encode call.wav customer.arrows --channel 1
        arecord -f S16_LE -r 16000 | streamenc encode - tokens.arrows
        streamenc encode mic:USB tokens.arrows mqtt://localhost/tokens -m facebook/encodec_24khz
        streamenc encode call.mp3 - --model mel:whisper | head
        streamenc encode mic: zmq+tcp://127.0.0.1:5555 -m facebook/hubert-base-ls960 --layer 9
        streamenc encode mic: - -m hubert:./hubert --layer 9 --units centroids.npy --runs
        streamenc encode mic: - --vad events
        streamenc encode talk.flac tokens.arrows -m hubertsiuzdak/snac_24khz --layout flat
        streamenc encode film.mp4 film.arrows -m ./Cosmos-0.1-Tokenizer-DV8x16x16 --set mode=window
        streamenc encode 'camera:?fps=10' zmq+tcp://127.0.0.1:5555 -m facebook/dinov2-small
        streamenc encode film.mp4 film.arrows --video ./Cosmos-DV8x16x16 --video-set mode=window
        streamenc encode talk.jsonl vectors.arrows -m sentence-transformers/all-MiniLM-L6-v2 --text
        sox talk.wav -t raw -r 16000 -c 1 -b 16 -e signed - | streamenc encode 'pcm:-?rate=16000' -
        """
    )
)
def encode(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Where sound, images or text come from.",
            autocompletion=complete_source,
        ),
    ],
    outputs: Annotated[
        list[str],
        typer.Argument(metavar="OUTPUT", help="Where tokens go.", autocompletion=complete_sink),
    ],
    model: Model = DEFAULT,
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-n", min=1, help="How many; all if not given.")
    ] = None,
    device: Device = "auto",
    realtime: Realtime = False,
    hops: Annotated[
        int | None,
        typer.Option(min=1, help="Hops in a step: 1 for live sound, about a second for files."),
    ] = None,
    layer: Layer = None,
    units: Units = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="Units once each, with how long they lasted.")
    ] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Of features: float32, float16 or bfloat16.")
    ] = None,
    conceal_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Gaps up to this are no restart: sound gets silence, images go on. 0, and 1000 "
            "for images.",
        ),
    ] = None,
    video: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Encodes INPUT's images too, beside its sound."),
    ] = None,
    text: Annotated[
        bool,
        typer.Option("--text", help="Writes the text itself too, as track 0 beside its vectors."),
    ] = False,
    layout: Layout = None,
    vad: Vad = None,
    vad_set: VadOptions = None,
    channel: Channel = None,
    size: Size = None,
    fit: Fit = None,
    filter: Filter = None,
    set_: ModelOptions = None,
    video_set: VideoOptions = None,
    revision: Revision = None,
    threads: Threads = None,
    deadline_ms: Deadline = None,
    max_age_ms: MaxAge = None,
    overwrite: Overwrite = False,
    stats: Stats = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode sound, images or text to tokens or features, live or from a file."""
    from streamenc.pipeline.builder import Pipeline

    log(verbose)
    input, outputs = filled_in(input), [filled_in(each) for each in outputs]
    check_outputs(outputs, overwrite, [input], [stats])
    named = {"layer": layer, "units": None if units is None else str(units)}
    codec = load_codec(model, "encoder", device, revision, set_, quiet, named)
    kind: Any = codec.spec.input.kind
    if kind == "features":
        raise UsageError(
            f"{model} with these options takes features, which no input gives; call its encode in "
            "Python"
        )
    shown: dict[str, Any] = {"size": size, "fit": fit, "filter": filter}
    options: dict[str, Any] = {
        "codebooks": codebooks,
        "hops": hops,
        "conceal_ms": conceal_ms,
        "dtype": dtype,
        "runs": runs,
        "layout": layout,
        "channel": channel,
    }
    if video is None:
        if video_set:
            raise UsageError("--video-set is for the model of --video; use --set for --model")
        with_video = None
        if kind == "video":
            options |= shown
    else:
        if kind != "audio":
            what = "images itself" if kind == "video" else "text"
            raise UsageError(f"--video is beside a model of sound; {model} takes {what}")
        with_video = load_codec(video, "encoder", device, None, video_set, quiet)
        kind, options["track"] = "av", 0
    if kind in ("audio", "text") and any(shown.values()):
        takes = "sound" if kind == "audio" else "text"
        raise UsageError(f"--size, --fit and --filter are of images; {model} takes {takes}")
    if text and kind != "text":
        raise UsageError(f"--text is of models of text; {model} takes other things")
    if vad is None and vad_set:
        raise UsageError("--vad-set is of --vad, which says what is to be done with speech")
    if vad is not None and kind != "audio":
        raise UsageError(f"--vad is of sound alone; {model} takes {'a film' if video else kind}")
    speech = named_values("--vad-set", vad_set)
    with Pipeline(deadline_ms=deadline_ms, max_age_ms=max_age_ms, overwrite=overwrite) as pipeline:
        source = pipeline.source("input", input, kind=kind, realtime=realtime)
        if vad is not None:
            heard = pipeline.vad("vad", source, vad, **speech)
            sound = heard if vad == "speech" else source
            codes = pipeline.encode("encode", codec, sound, **options)
            if vad == "events":
                wait_ms = 0 if pipeline.live else None
                codes = pipeline.merge("merge", [codes, heard], max_wait_ms=wait_ms)
        elif with_video is None:
            codes = pipeline.encode("encode", codec, source, **options)
            codes = pipeline.merge("merge", [source, codes]) if text else codes
        else:
            sound = pipeline.encode("sound", codec, source, **options)
            shown["conceal_ms"] = conceal_ms
            images = pipeline.encode("images", with_video, source, track=1, **shown)
            codes = pipeline.merge("merge", [sound, images])
        for index, target in enumerate(outputs):
            pipeline.sink(_sink_name(index, outputs), target, codes)
        run_pipeline(pipeline, stats, quiet, threads, overwrite=overwrite)


@app.command(
    epilog=examples(
        """
        streamenc decode tokens.arrows talk.wav
        streamenc decode tokens.arrows speaker: --model ./mimi
        streamenc decode music.ecdc music.flac
        streamenc decode tokens.arrows - | sox - -n stats
        streamenc decode film.arrows back.mp4 -m nano -m ./Cosmos-DV8x16x16 --video-set mode=window
        """
    )
)
def decode(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A recording or a token stream.",
            autocompletion=complete_source,
        ),
    ],
    output: Annotated[
        str,
        typer.Argument(
            metavar="OUTPUT",
            help="A sound or video file, speaker:, or -, WAV for the next program.",
            autocompletion=complete_sink,
        ),
    ],
    model: Decoders = None,
    layout: Layout = None,
    device: Device = "auto",
    realtime: Realtime = False,
    set_: ModelOptions = None,
    video_set: VideoOptions = None,
    revision: Revision = None,
    threads: Threads = None,
    overwrite: Overwrite = False,
    stats: Stats = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Decode tokens back to sound or images."""
    from streamenc.coding.defaults import MERGED_IMAGES
    from streamenc.io import sink_entry
    from streamenc.io.reading import tracks_of
    from streamenc.pipeline.builder import Pipeline

    log(verbose)
    input, output = filled_in(input), filled_in(output)
    check_outputs([output], overwrite, [input], [stats])
    # Text beside codes, such as when speech starts and stops, is left where it is.
    tracks = {i: track for i, track in enumerate(tracks_of(input)) if track.kind != "text"}
    models = model or []
    count = max(1, len(tracks))
    if len(models) not in (0, count):
        raise UsageError(
            f"{shown_address(input)} holds {count} stream{'s' * (count > 1)}; got {len(models)} of "
            "--model: give one for each, in order"
        )
    if video_set and not tracks:
        raise UsageError("--video-set is for a film's images beside its sound; use --set here")
    options = [video_set if len(t.shape) == 4 else set_ for t in tracks.values()] or [set_]
    codecs = [
        load_codec(name, "decoder", device, revision, given, quiet)
        for name, given in zip(models, options, strict=False)
    ] or [None] * max(1, len(tracks))
    with Pipeline(overwrite=overwrite) as pipeline:
        source = pipeline.source("input", input, realtime=realtime)
        # Long steps would play on for seconds after Ctrl-C.
        hops = 1 if sink_entry(output).device else None
        how: dict[str, Any] = {"hops": hops, "device": device, "layout": layout or ""}
        if not tracks:
            decoded = pipeline.decode("decode", codecs[0], source, **how)
        else:
            each = [
                pipeline.decode(f"decode{track}", codec, source, track=track, **how)
                for track, codec in zip(tracks, codecs, strict=True)
            ]
            several = len(each) > 1
            decoded = pipeline.merge("merge", each, capacity=MERGED_IMAGES) if several else each[0]
        pipeline.sink("output", output, decoded)
        run_pipeline(pipeline, stats, quiet, threads, overwrite=overwrite)


@app.command(
    epilog=examples(
        """
        streamenc listen zmq+tcp://127.0.0.1:5555
        streamenc listen zmq+tcp://127.0.0.1:5555 speaker:
        streamenc listen 'zmq+tcp://127.0.0.1:5555?mode=credit' tokens.arrows
        streamenc listen mqtt://localhost/tokens talk.wav --model ./mimi
        """
    )
)
def listen(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL",
            help="A token stream to subscribe to.",
            autocompletion=complete_source,
        ),
    ],
    outputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OUTPUT",
            help="JSON lines on standard output if not given.",
            autocompletion=complete_sink,
        ),
    ] = None,
    model: Decoder = None,
    layout: Layout = None,
    device: Device = "auto",
    set_: ModelOptions = None,
    revision: Revision = None,
    threads: Threads = None,
    deadline_ms: Deadline = None,
    max_age_ms: MaxAge = None,
    overwrite: Overwrite = False,
    stats: Stats = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Subscribe to a token stream: print it, record it, or play it."""
    from streamenc.io import sink_entry
    from streamenc.pipeline.builder import Pipeline

    log(verbose)
    url, targets = filled_in(url), [filled_in(each) for each in outputs or ["-"]]
    check_outputs(targets, overwrite, [url], [stats])
    codec = load_codec(model, "decoder", device, revision, set_, quiet) if model else None
    with Pipeline(deadline_ms=deadline_ms, max_age_ms=max_age_ms, overwrite=overwrite) as pipeline:
        source = pipeline.source("input", url)
        decoded = None
        for index, target in enumerate(targets):
            after = source
            if sink_entry(target).kind:
                how: dict[str, Any] = {"device": device, "layout": layout or ""}
                decoded = decoded or pipeline.decode("decode", codec, source, **how)
                after = decoded
            pipeline.sink(_sink_name(index, targets), target, after)
        run_pipeline(pipeline, stats, quiet, threads, overwrite=overwrite)


@app.command(
    epilog=examples(
        """
        streamenc run live.toml
        """
    )
    + r"""

A pipeline file has a table for each node, with its kind and the node that it comes `after`:

  deadline_ms = 200

  \[nodes.mic]

  source = "mic:"

  \[nodes.tokens]

  encode = "kyutai/mimi"

  codebooks = 8

  after = "mic"

  \[nodes.publish]

  sink = "zmq+tcp://127.0.0.1:5555"

  after = "tokens"

Kinds: source, resample, vad (speech or events), encode, decode, node (from outside, or
package.module:Class), merge (a list of names), sink. `policy` is block, drop_oldest or latest,
`capacity` is in frames, and `max_age_ms` (of a node, or at the top, of all) gives up live frames
that are older. A source also takes kind (audio, video, av for both as tracks, or text), realtime,
align and latency_ms; encode takes track, channel, size, fit, filter, conceal_ms, hops, dtype, runs
and layout; decode takes track and layout; vad takes threshold, silence_ms, padding_ms and engine;
all that open something, and node, take options."""
)
def run(
    pipeline_file: Annotated[Path, typer.Argument(metavar="PIPELINE", help="A TOML file.")],
    overwrite: Overwrite = False,
    stats: Stats = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run any graph: tees, merges, several encoders."""
    from streamenc.pipeline.builder import Pipeline

    log(verbose)
    with Pipeline.from_toml(pipeline_file, overwrite=overwrite) as pipeline:
        inputs = [str(pipeline_file), *pipeline.inputs]
        check_outputs(list(pipeline.sinks.values()), overwrite, inputs, [stats])
        run_pipeline(pipeline, stats, quiet, overwrite=overwrite)


def _sink_name(index: int, targets: list[str]) -> str:
    return "output" if len(targets) == 1 else f"output{index + 1}"
