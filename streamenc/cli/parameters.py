"""Options that several commands of the command line have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamenc.cli.facts.completion import complete_model

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="A listed name, a Hub name, a folder, a checkpoint, or package.module:load; "
        "see `models`.",
        autocompletion=complete_model,
    ),
]
Decoder = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="The model to decode with, for media.",
        autocompletion=complete_model,
    ),
]
Decoders = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="The model, of a merged stream one for each track; those that it names if listed.",
        autocompletion=complete_model,
    ),
]
ModelOptions = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="An option of the model, e.g. exact=false."),
]
VideoOptions = Annotated[
    list[str] | None,
    typer.Option("--video-set", metavar="NAME=VALUE", help="Of a film, one of its images' model."),
]
Layer = Annotated[
    str | None,
    typer.Option(
        "--layer",
        "--layers",
        metavar="N,N",
        help="Hidden layers that come out, of a model of features: 9, or 6,9, or all.",
    ),
]
Units = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="K-means centroids, .npy: their indices come out instead."),
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="LAYOUT",
        help="How codes lie for a language model: books, flat, delay, or delay:0,1,1,1.",
    ),
]
Vad = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="speech: only speech is encoded. events: when it starts and stops, beside the codes.",
    ),
]
VadOptions = Annotated[
    list[str] | None,
    typer.Option("--vad-set", metavar="NAME=VALUE", help="Of --vad, e.g. silence_ms=800."),
]
Channel = Annotated[
    str | None,
    typer.Option(
        metavar="N,N", help="Which channel of the sound, from 0, or which ones; a mix if not given."
    ),
]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", help="Size of images, e.g. 256x256; what the model takes if not given."
    ),
]
Fit = Annotated[
    str | None,
    typer.Option(help="How images come to their size: crop, pad or stretch."),
]
Filter = Annotated[
    str | None,
    typer.Option(help="And by what filter: nearest, bilinear, bicubic, lanczos or area."),
]
Device = Annotated[
    str, typer.Option(help="cpu, cuda, cuda:1, or auto: a GPU where there is one, else the CPU.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Realtime = Annotated[bool, typer.Option("--realtime", help="Play a file like a microphone.")]
Deadline = Annotated[
    float | None, typer.Option(metavar="MS", help="Count frames that take longer end to end.")
]
MaxAge = Annotated[
    float | None,
    typer.Option(metavar="MS", help="Of live input: drop what is older, wherever it waits."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-y", help="Replace files that exist.")]
Stats = Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no report.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="CPU threads of the model: all, or 1 where a step is under 40 ms."),
]
