"""The commands that say what there is: models, devices, and inspect, what a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamenc.cli.app import app, examples
from streamenc.cli.common import load_codec
from streamenc.cli.parameters import ModelOptions
from streamenc.errors import DeviceError, UsageError


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
    epilog=examples(
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
    decoder = (
        None if model is None else load_codec(model, "decoder", "cpu", None, set_, quiet=False)
    )
    print_rows(("", ""), inspect_file(file, png, Look(original, decoder, fit)))
