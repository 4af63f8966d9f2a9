"""The command line: `streamenc encode | decode | listen | run | export | models | inspect ...`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from streamenc.cli.parameters import (
    Deadline,
    Device,
    Filter,
    Fit,
    Layer,
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
    Verbose,
    VideoOptions,
)
from streamenc.errors import (
    DeviceError,
    FitError,
    InputError,
    NodeError,
    OutputError,
    StreamencError,
    UsageError,
)
from streamenc.registry import DEFAULT

if TYPE_CHECKING:
    from streamenc.graph.report import GraphReport
    from streamenc.pipeline.builder import Pipeline

EXIT_FAILED, EXIT_USAGE, EXIT_CANCELLED = 1, 2, 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn live sound and image into what models read: codec tokens and features, frame by "
    "frame.\n\n"
    "INPUT and OUTPUT are a file, [bold]-[/bold], or a URL: [bold]mic:[/bold], "
    "[bold]mic:NAME[/bold], "
    "[bold]camera:[/bold], [bold]screen:[/bold], [bold]rtsp://...[/bold], "
    "[bold]speaker:[/bold], [bold]zmq+tcp://HOST:PORT[/bold], [bold]mqtt://HOST/TOPIC[/bold], "
    "[bold]tokens.arrows[/bold] (a recording), [bold]talk.flac[/bold], [bold]http://...[/bold]. "
    "Options of a source or sink stand in its query: [bold]zmq+tcp://*:5555?mode=credit[/bold].",
)


def _panel(text: str) -> str:
    """Examples for a command's help, one on each line."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])


@app.command(
    epilog=_panel(
        """
        streamenc encode talk.flac tokens.arrows
        streamenc encode mic: zmq+tcp://127.0.0.1:5555 --model kyutai/mimi --codebooks 8
        streamenc encode mic:USB tokens.arrows mqtt://localhost/tokens -m facebook/encodec_24khz
        streamenc encode call.mp3 - --model mel:whisper | head
        streamenc encode mic: zmq+tcp://127.0.0.1:5555 -m facebook/hubert-base-ls960 --layer 9
        streamenc encode mic: - -m hubert:./hubert --layer 9 --units centroids.npy --runs
        streamenc encode film.mp4 film.arrows -m ./Cosmos-0.1-Tokenizer-DV8x16x16 --set mode=window
        streamenc encode 'camera:?fps=10' zmq+tcp://127.0.0.1:5555 -m facebook/dinov2-small
        streamenc encode film.mp4 film.arrows --video ./Cosmos-DV8x16x16 --video-set mode=window
        sox talk.wav -t raw -r 16000 -c 1 -b 16 -e signed - | streamenc encode 'pcm:-?rate=16000' -
        """
    )
)
def encode(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="Where sound or images come from.")],
    outputs: Annotated[list[str], typer.Argument(metavar="OUTPUT...", help="Where tokens go.")],
    model: Model = DEFAULT,
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-n", min=1, help="How many; all if not given.")
    ] = None,
    device: Device = "cpu",
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
    size: Size = None,
    fit: Fit = None,
    filter: Filter = None,
    set_: ModelOptions = None,
    video_set: VideoOptions = None,
    revision: Revision = None,
    threads: Threads = None,
    deadline_ms: Deadline = None,
    overwrite: Overwrite = False,
    stats: Stats = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Encode sound or images to tokens or features, live or from a file."""
    from streamenc.pipeline.builder import Pipeline

    _log(verbose)
    _check_outputs(outputs, overwrite, input)
    named = {"layer": layer, "units": None if units is None else str(units)}
    codec = _load(model, "encoder", device, revision, set_, quiet, named)
    kind: Any = codec.spec.input.kind
    shown: dict[str, Any] = {"size": size, "fit": fit, "filter": filter}
    options: dict[str, Any] = {
        "codebooks": codebooks,
        "hops": hops,
        "conceal_ms": conceal_ms,
        "dtype": dtype,
        "runs": runs,
    }
    if video is None:
        if video_set:
            raise UsageError("--video-set is for the model of --video; use --set for --model")
        with_video = None
        if kind == "video":
            options |= shown
    else:
        if kind == "video":
            raise UsageError(f"--video is beside a model of sound; {model} takes images itself")
        with_video = _load(video, "encoder", device, None, video_set, quiet)
        kind, options["track"] = "av", 0
    if kind == "audio" and any(shown.values()):
        raise UsageError(f"--size, --fit and --filter are of images; {model} takes sound")
    with Pipeline(deadline_ms=deadline_ms) as pipeline:
        source = pipeline.source("input", input, kind=kind, realtime=realtime)
        if with_video is None:
            codes = pipeline.encode("encode", codec, source, **options)
        else:
            sound = pipeline.encode("sound", codec, source, **options)
            shown["conceal_ms"] = conceal_ms
            images = pipeline.encode("images", with_video, source, track=1, **shown)
            codes = pipeline.merge("merge", [sound, images])
        for index, target in enumerate(outputs):
            pipeline.sink(_sink_name(index, outputs), target, codes)
        _run(pipeline, stats, quiet, threads)


@app.command(
    epilog=_panel(
        """
        streamenc decode tokens.arrows talk.wav
        streamenc decode tokens.arrows speaker: --model ./mimi
        streamenc decode music.ecdc music.flac
        streamenc decode film.arrows back.mp4 -m nano -m ./Cosmos-DV8x16x16 --video-set mode=window
        """
    )
)
def decode(
    input: Annotated[str, typer.Argument(metavar="INPUT", help="A recording or a token stream.")],
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="A sound or video file, or speaker:.")
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="The model, of a merged stream one for each track; those that it names if listed.",
        ),
    ] = None,
    device: Device = "cpu",
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
    from streamenc.cli.inspection import tracks_of
    from streamenc.io import sink_entry
    from streamenc.pipeline.builder import Pipeline
    from streamenc.pipeline.defaults import MERGED_IMAGES

    _log(verbose)
    _check_outputs([output], overwrite, input)
    tracks = tracks_of(input)
    models = model or []
    count = max(1, len(tracks))
    if len(models) not in (0, count):
        raise UsageError(
            f"{input} holds {count} stream{'s' * (count > 1)}; got {len(models)} of --model: give "
            "one for each, in order"
        )
    if video_set and not tracks:
        raise UsageError("--video-set is for a film's images beside its sound; use --set here")
    options = [video_set if len(track.shape) == 4 else set_ for track in tracks] or [set_]
    codecs = [
        _load(name, "decoder", device, revision, given, quiet)
        for name, given in zip(models, options, strict=False)
    ] or [None] * max(1, len(tracks))
    with Pipeline() as pipeline:
        source = pipeline.source("input", input, realtime=realtime)
        # Long steps would play on for seconds after Ctrl-C.
        hops = 1 if sink_entry(output).device else None
        if not tracks:
            decoded = pipeline.decode("decode", codecs[0], source, hops=hops)
        else:
            each = [
                pipeline.decode(f"decode{track}", codec, source, hops=hops, track=track)
                for track, codec in enumerate(codecs)
            ]
            decoded = pipeline.merge("merge", each, capacity=MERGED_IMAGES)
        pipeline.sink("output", output, decoded)
        _run(pipeline, stats, quiet, threads)


@app.command(
    epilog=_panel(
        """
        streamenc listen zmq+tcp://127.0.0.1:5555
        streamenc listen zmq+tcp://127.0.0.1:5555 speaker:
        streamenc listen 'zmq+tcp://127.0.0.1:5555?mode=credit' tokens.arrows
        streamenc listen mqtt://localhost/tokens talk.wav --model ./mimi
        """
    )
)
def listen(
    url: Annotated[str, typer.Argument(metavar="URL", help="A token stream to subscribe to.")],
    outputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[OUTPUT]...", help="JSON lines on standard output if not given."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The model to decode with, for media.")
    ] = None,
    device: Device = "cpu",
    set_: ModelOptions = None,
    revision: Revision = None,
    threads: Threads = None,
    deadline_ms: Deadline = None,
    overwrite: Overwrite = False,
    stats: Stats = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Subscribe to a token stream: print it, record it, or play it."""
    from streamenc.io import sink_entry
    from streamenc.pipeline.builder import Pipeline

    _log(verbose)
    targets = outputs or ["-"]
    _check_outputs(targets, overwrite)
    codec = _load(model, "decoder", device, revision, set_, quiet) if model else None
    with Pipeline(deadline_ms=deadline_ms) as pipeline:
        source = pipeline.source("input", url)
        decoded = None
        for index, target in enumerate(targets):
            after = source
            if sink_entry(target).kind:
                decoded = decoded or pipeline.decode("decode", codec, source)
                after = decoded
            pipeline.sink(_sink_name(index, targets), target, after)
        _run(pipeline, stats, quiet, threads)


@app.command(
    epilog=_panel(
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

Kinds: source, resample, encode, decode, merge (a list of names), sink. `policy` is block,
drop_oldest or latest, `capacity` is in frames. A source also takes kind (audio, video, or av for
both as tracks), realtime, align and latency_ms; encode takes track, size, fit, filter, conceal_ms,
hops, dtype and runs; decode takes track; all that open something take options."""
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

    _log(verbose)
    with Pipeline.from_toml(pipeline_file) as pipeline:
        _check_outputs(list(pipeline.sinks.values()), overwrite)
        _run(pipeline, stats, quiet)


@app.command(
    epilog=_panel(
        """
        streamenc export nano nano.onnx
        streamenc export kyutai/mimi mimi.onnx --codebooks 8
        streamenc export kyutai/mimi decoder.onnx --part decoder --codebooks 8 --precision int16
        """
    )
)
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for encode --model.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The step's graph.")],
    part: Annotated[str, typer.Option(help="encoder or decoder.")] = "encoder",
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-n", min=1, help="How many; all if not given.")
    ] = None,
    hops: Annotated[int, typer.Option(min=1, help="Hops in a step.")] = 1,
    precision: Annotated[str, typer.Option(help="float32, int16 or int8.")] = "float32",
    set_: ModelOptions = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a codec's step as an ONNX graph with its state in named inputs and outputs.

    Beside OUT.onnx come OUT.start.onnx, the first step, and OUT.json, which says how to step them.
    Needs the extra onnx.
    """
    from streamenc.cli.show import console
    from streamenc.onnx.portable import export_files, written
    from streamenc.onnx.precision import check_precision

    _log(verbose)
    if part not in ("encoder", "decoder"):
        raise UsageError(f"--part is encoder or decoder; got {part!r}")
    reduced = check_precision(precision)
    _check_outputs([str(path) for path in written(output)], overwrite)
    codec = _load(model, part, "cpu", revision, set_, quiet)
    side = codec.encoder if part == "encoder" else codec.decoder
    with nullcontext() if quiet or not console.is_terminal else console.status("exporting"):
        made = export_files(side, output, hops=hops, codebooks=codebooks, precision=reduced)
    if not quiet:
        what = "of the codes differ" if part == "encoder" else "of the largest value apart at most"
        console.print(
            f"wrote {output}, {made['start']} and {output.stem}.json: {len(made['state'])} state "
            f"tensors; checked against torch, {made['difference']:.1e} {what}"
        )


@app.command()
def models() -> None:
    """List the models with what they promise."""
    from streamenc.cli.show import print_rows
    from streamenc.registry import LISTED, published_spec

    rows = []
    for name, listed in LISTED.items():
        spec = published_spec(name)
        books = f"{spec.output.channels}x{spec.codebook_size}" if spec.codebook_size else "-"
        rows.append(
            (
                name,
                spec.equality,
                f"{1000 * spec.latency_seconds:.0f} ms",
                "images"
                if spec.input.kind == "video"
                else f"{float(spec.input.rate):g} Hz x{spec.input.channels}",
                f"{float(spec.output.rate):g}/s",
                books,
                listed.caption,
            )
        )
    print_rows(("model", "equality", "latency", "input", "frames", "codebooks", ""), rows)


@app.command()
def devices() -> None:
    """List the sound devices and cameras, for mic:NAME, speaker:NAME and camera:NAME."""
    from streamenc.cli.show import print_rows
    from streamenc.io.devices.camera import list_cameras
    from streamenc.io.devices.sound import list_devices

    rows: list[tuple[object, ...]] = [
        ("camera", c.address, c.name, "", "", "*" if c.default else "") for c in list_cameras()
    ]
    silent: DeviceError | None = None
    try:
        rows += [
            (d.kind, d.index, d.name, d.channels, f"{d.rate} Hz", "*" if d.default else "")
            for d in list_devices()
        ]
    except DeviceError as error:
        silent = error
    print_rows(("kind", "index", "name", "channels", "rate", "default"), rows)
    if silent is not None:
        raise silent


@app.command(
    epilog=_panel(
        """
        streamenc inspect tokens.arrows
        streamenc inspect tokens.arrows --png tokens.png
        streamenc inspect clip.arrows --png sheet.png --original clip.mp4 -m ./Cosmos-DV8x16x16
        streamenc inspect weights.safetensors
        """
    )
)
def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A recording, sound or checkpoint.")],
    png: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Plot what was encoded over time; of images, a sheet."),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The video that was encoded, to stand beside its codes."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Decodes the images, to stand beside the original."),
    ] = None,
    fit: Annotated[str, typer.Option(help="How the original came to its size.")] = "crop",
    set_: ModelOptions = None,
) -> None:
    """Say what is in a file: a recording, an .ecdc, a sound file, or a checkpoint."""
    from streamenc.cli.inspection import Look, inspect_file
    from streamenc.cli.show import print_rows

    if png is None and (original is not None or model is not None):
        raise UsageError("--original and --model are for the image; name it with --png")
    decoder = None if model is None else _load(model, "decoder", "cpu", None, set_, quiet=False)
    print_rows(("", ""), inspect_file(file, png, Look(original, decoder, fit)))


def main() -> NoReturn:
    """Entry point: every expected error is one line that names the cure, and an exit code."""
    try:
        # Typer returns the code of its own exits, also that of Ctrl-C before a graph runs.
        code = app(standalone_mode=False)
        if code == EXIT_CANCELLED:
            print("streamenc: cancelled", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)
    except (UsageError, FitError, InputError) as error:
        _die(str(error), EXIT_USAGE)
    except NodeError as error:
        cause = error.__cause__
        if isinstance(cause, OutputError) and isinstance(cause.__cause__, BrokenPipeError):
            sys.exit(0)
        _die(str(error), EXIT_USAGE if isinstance(cause, UsageError | FitError) else EXIT_FAILED)
    except StreamencError as error:
        _die(str(error), EXIT_FAILED)
    except Exception as error:
        # Click's own usage errors know how to print themselves and which code to exit with.
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            raise
        show()
        sys.exit(code)


def _die(message: str, code: int) -> NoReturn:
    print(f"streamenc: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _log(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="streamenc: %(message)s")


def _load(
    model: str,
    part: Any,
    device: str,
    revision: str | None,
    options: list[str] | None,
    quiet: bool,
    named: Mapping[str, Any] | None = None,
) -> Any:
    """The model with the options of `--set`, and those that have a name of their own."""
    from rich.markup import escape

    from streamenc.cli.show import console
    from streamenc.registry import load

    given: dict[str, Any] = {}
    for option in options or []:
        name, equals, value = option.partition("=")
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE; got {option!r}")
        given[name] = value
    given |= {name: value for name, value in (named or {}).items() if value is not None}
    status = f"loading {escape(model)}"
    with nullcontext() if quiet or not console.is_terminal else console.status(status):
        codec = load(model, part=part, device=device, revision=revision, **given)
    return codec


def _check_outputs(targets: list[str], overwrite: bool, input: str = "") -> None:
    source = Path(input.partition("?")[0])
    for target in targets:
        path = Path(target.partition("?")[0])
        if path.is_file() and source.is_file() and path.samefile(source):
            raise UsageError(f"{path} is the input; name another file as the output")
        if not overwrite and target != "-" and ":" not in target[2:] and path.is_file():
            raise UsageError(f"{path} exists; pass --overwrite to replace it, or name another file")
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"{target} is named twice as an output")


def _sink_name(index: int, targets: list[str]) -> str:
    return "output" if len(targets) == 1 else f"output{index + 1}"


def _run(
    pipeline: Pipeline, stats: Path | None, quiet: bool, threads: int | None = None
) -> GraphReport:
    import anyio

    from streamenc.cli.show import console, print_report, progress, write_stats

    async def go() -> GraphReport:
        sink = next(iter(pipeline.sinks), None)
        if quiet or sink is None:
            return await pipeline.graph.run(handle_signals=True)
        async with progress(pipeline.graph, sink, partial(_duration, pipeline)):
            return await pipeline.graph.run(handle_signals=True)

    _use_threads(pipeline, threads)
    report = anyio.run(go)
    if stats is not None:
        write_stats(report, stats)
    if not quiet:
        for name, fit in pipeline.fits.items():
            if fit.stated:
                console.print(f"{name}: images of {fit.stated}", highlight=False)
        print_report(report)
    if report.outcome == "cancelled":
        raise typer.Exit(EXIT_CANCELLED)
    return report


def _use_threads(pipeline: Pipeline, threads: int | None) -> None:
    """Sets torch's number for this process; None leaves its own but where one thread is best."""
    if threads or pipeline.short_steps:
        import torch

        torch.set_num_threads(threads or 1)


def _duration(pipeline: Pipeline) -> float | None:
    """Length of the input, where it is known: a file's, once it is open."""
    return pipeline.sources[0].duration_seconds
