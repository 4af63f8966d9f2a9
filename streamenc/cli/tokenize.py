"""The command tokenize: a data set to tokens, on this machine or a cluster."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamenc.cli.app import EXIT_CANCELLED, EXIT_FAILED, app, examples
from streamenc.cli.common import check_outputs, log, named_values
from streamenc.cli.facts.completion import complete_model
from streamenc.cli.parameters import (
    Channel,
    Fit,
    Layout,
    ModelOptions,
    Quiet,
    Revision,
    Size,
    Stats,
    Verbose,
)
from streamenc.cli.show import RunDisplay
from streamenc.errors import UsageError
from streamenc.io.files.output import write_output

if TYPE_CHECKING:
    from streamenc.bulk.runfigures import RunFigures
    from streamenc.bulk.tokenizejob import TokenizeJob
    from streamenc.bulk.workers.stop import Stop

ANYWHERE = "auto"


@app.command(
    epilog=examples(
        """
        streamenc tokenize talks/ tokens/ -m kyutai/mimi --codebooks 8
        streamenc tokenize 'shards/{000..999}.tar' tokens/ -m nano --device all
        streamenc tokenize manifest.jsonl tokens/ -m nano -m mel:whisper --format shar
        streamenc tokenize s3://bucket/data/*.parquet tokens/ -m nano --shard 3/16
        streamenc tokenize talks/ /mnt/shared/tokens -m nano --ray auto
        streamenc tokenize clips/ latents/ -m ./Cosmos-0.1-Tokenizer-DV8x16x16 --size 256x256
        """
    )
)
def tokenize(
    input: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A folder or glob of media, wav.scp, a JSONL manifest (NeMo, Lhotse), WebDataset "
            "tars, Parquet or a Hugging Face folder, Lhotse Shar, LeRobot; local, or by a URL.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUTPUT", help="A folder. What is finished of the same job there is kept."
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="As for encode; give it several times for several in one pass.",
            autocompletion=complete_model,
        ),
    ],
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-n", min=1, metavar="N", help="Of each frame.")
    ] = None,
    layout: Layout = None,
    dtype: Annotated[
        str, typer.Option(help="What features are rounded to: float32 or float16.")
    ] = "",
    set_: ModelOptions = None,
    format_: Annotated[
        str,
        typer.Option("--format", help="Of the shards: parquet, webdataset, shar, arrows or npz."),
    ] = "parquet",
    items: Annotated[
        int,
        typer.Option(
            "--items",
            min=1,
            metavar="N",
            help="Of a shard, at most; where the input has tars or shards, each is one.",
        ),
    ] = 1000,
    kind: Annotated[
        str,
        typer.Option(help="What INPUT is, where its look does not tell; an unknown one lists all."),
    ] = "",
    input_set: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Of the input, e.g. column=speech of a table."),
    ] = None,
    channel: Channel = None,
    size: Size = None,
    fit: Fit = None,
    damaged: Annotated[
        bool,
        typer.Option("--damaged", help="Keep files that are not whole, flagged, as far as they go"),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Processes: of a CPU, each decodes and encodes, one a core if not given; of a "
            "GPU, threads that decode. 0 does all in this process.",
        ),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(help="As for encode, auto if not given; several, or all, share the work."),
    ] = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N", help="Only every N-th shard, from the I-th on (from 0): for N machines."
        ),
    ] = "",
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="On a cluster of Ray: its address, or auto: the one of $RAY_ADDRESS, or of this "
            "machine.",
        ),
    ] = "",
    verify: Annotated[
        float,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Of the items that are encoded twice and compared."
        ),
    ] = 0.0,
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, metavar="SHARE", help="Give up where more of the items are bad; never."
        ),
    ] = None,
    stats: Stats = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "-y", help="Replace the file of --stats.")
    ] = False,
    revision: Revision = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Turn a data set of sound or images into a data set of tokens, exactly once.

    Each item equals what the model gives for it alone. Bad ones go to OUTPUT/errors.jsonl with
    their reason. Ctrl-C ends when the shards in hand are written, a second one at once; run the
    same again to go on. See docs/bulk.
    """
    log(verbose)
    check_outputs([], overwrite, [], [stats])
    from streamenc.bulk.tokenizejob import ModelAsk, TokenizeJob

    if set_ and len(model) > 1:
        raise UsageError("--set is of one model; name a folder or checkpoint for each instead")
    if twice := next((name for name in model if model.count(name) > 1), None):
        raise UsageError(f"-m {twice} is given twice")
    options: dict[str, Any] = dict(named_values("--set", set_))
    if revision is not None:
        options["revision"] = revision
    asks = tuple(
        ModelAsk(name=name, options=options, codebooks=codebooks, dtype=dtype) for name in model
    )
    job = TokenizeJob(
        input=input,
        models=asks,
        input_kind=kind,
        input_options=dict(named_values("--input-set", input_set)),
        layout=layout or "books",
        format=format_,
        items_per_shard=items,
        damaged=damaged,
        channel=channel or "",
        size=size or "",
        fit=fit or "",
        verify=verify,
    )
    share = _share(shard)
    with RunDisplay(quiet) as display, _stopping(display) as stop:
        common: dict[str, Any] = {
            "share": share,
            "max_error_rate": max_error_rate,
            "tell": display.show,
            "stop": stop,
        }
        if ray:
            figures = _on_ray(ray, job, output, device, workers, common)
        else:
            from streamenc.bulk.tokenizing import tokenize as run

            figures = run(job, output, workers=workers, devices=_devices(device), **common)
    if stats is not None:
        content = json.dumps(figures.as_json(), indent=2) + "\n"
        write_output(stats, content.encode(), overwrite)
    if not quiet:
        display.report(figures, output)
    if figures.stopped:
        raise typer.Exit(EXIT_CANCELLED)
    if figures.differing:
        raise typer.Exit(EXIT_FAILED)


def _on_ray(
    address: str,
    job: TokenizeJob,
    output: Path,
    device: list[str] | None,
    workers: int | None,
    common: dict[str, Any],
) -> RunFigures:
    from streamenc.bulk.cluster.onray import tokenize_on_ray

    if device not in (None, ["cpu"], ["cuda"]):
        raise UsageError(
            "--ray gives workers a GPU each, with --device cuda, or a core, with cpu or without; "
            f"got {' and '.join(device or [])}"
        )
    return tokenize_on_ray(
        job,
        output,
        address=None if address == ANYWHERE else address,
        concurrency=workers or None,
        gpus=1.0 if device == ["cuda"] else 0.0,
        **common,
    )


@contextmanager
def _stopping(display: RunDisplay) -> Iterator[Stop]:
    """Ctrl-C and SIGTERM as a Stop."""
    from streamenc.bulk.workers.stop import Stop

    stop = Stop()

    def on_signal(number: int, frame: object) -> None:
        stop.ask()
        display.stopping(at_once=stop.abandoned)

    before = {each: signal.signal(each, on_signal) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _devices(asked: list[str] | None) -> list[str]:
    from streamenc.bulk.encoding.devices import devices_of

    found = [device for each in asked or [ANYWHERE] for device in devices_of(each)]
    return list(dict.fromkeys(found))


def _share(text: str) -> tuple[int, int]:
    """(i, n) of "i/n"; (0, 1) of "". Raises UsageError."""
    if not text:
        return 0, 1
    first, slash, last = text.partition("/")
    if slash and first.isdecimal() and last.isdecimal() and int(first) < int(last) <= 100_000:
        return int(first), int(last)
    raise UsageError(f"--shard is I/N with I from 0 to N - 1, as 0/4; got {text!r}")
