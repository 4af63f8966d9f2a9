"""The commands that say what there is: models, devices, and inspect, what a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamenc.addresses import filled_in
from streamenc.cli.app import app, examples
from streamenc.cli.common import check_outputs, load_codec
from streamenc.cli.facts.completion import complete_model
from streamenc.cli.parameters import ModelOptions
from streamenc.errors import DeviceError, UsageError


@app.command(
    epilog=examples(
        """
        streamenc models
        streamenc models kyutai/mimi
        streamenc models hubert --json
        """
    )
)
def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="A listed model, a family, or package.module:load; all if not given.",
            autocompletion=complete_model,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """List the models, or say what one promises and which options it has."""
    from streamenc.cli.facts.modelfacts import all_facts, fact_rows, facts_of, table_row
    from streamenc.cli.show import print_json, print_named, print_rows, print_text

    if name is None:
        listed = list(all_facts())
        if as_json:
            print_json([facts.as_dict() for facts in listed])
            return
        header = ("model", "equality", "latency", "input", "frames", "codebooks", "")
        print_named(header, [table_row(facts) for facts in listed])
        return
    facts = facts_of(name)
    if as_json:
        print_json(facts.as_dict())
        return
    print_rows(("", ""), fact_rows(facts))
    if facts.options:
        print_rows(("option", "type", "default", ""), [each.row() for each in facts.options])
        print_text(
            "Give them as --set NAME=VALUE, or to streamenc.load; so are backend and precision."
        )
    else:
        print_text("It has no options.")


@app.command()
def devices() -> None:
    """List what models compute on, for --device, auto takes the one marked; the sound devices and
    cameras, for mic:NAME, speaker:NAME and camera:NAME; and the schemes of devices from outside."""
    from streamenc import io
    from streamenc.cli.facts.meanings import summary
    from streamenc.cli.show import print_rows, print_text
    from streamenc.io.devices.camera import list_cameras
    from streamenc.io.devices.sound import list_devices
    from streamenc.registry import compute_devices
    from streamenc_kernels import reduced_products

    computing = compute_devices()
    taken = next(found.name for found in computing if not found.cannot)
    rows: list[tuple[object, ...]] = [
        (
            "compute",
            found.name,
            ", ".join(filter(None, (found.description, found.cannot))),
            *("", "", "", "*" if found.name == taken else ""),
        )
        for found in computing
    ]
    rows += [
        ("camera", c.address, c.name, "", "", "", "*" if c.default else "") for c in list_cameras()
    ]
    rows += [
        (what, f"{name}:", summary(entry.load()), "", "", "", "")
        for what, entries in (
            ("source", io.from_outside("input")),
            ("sink", io.from_outside("output")),
        )
        for name, entry in entries.items()
        if entry.device
    ]
    silent: DeviceError | None = None
    try:
        rows += [
            (d.kind, d.index, d.name, d.api, d.channels, f"{d.rate} Hz", "*" if d.default else "")
            for d in list_devices()
        ]
    except DeviceError as error:
        silent = error
    print_rows(("kind", "index", "name", "api", "channels", "rate", "default"), rows)
    if len(rows) == len(computing) and silent is None:
        print_text("There is no sound device and no camera that this process may use.")
    reduced = ", ".join(f"{part} in {how}" for part, how in reduced_products("cuda").items())
    if len(computing) > 1:
        otherwise = f"; else torch computes {reduced}" if reduced else ""
        print_text(f"While steps run, products of float32 are in full{otherwise}.")
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
        typer.Option(
            metavar="FILE", help="Plot what was encoded over time, each track; of images, a sheet."
        ),
    ] = None,
    original: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What was encoded: its images beside their codes, its sound above them.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Decodes the images, to stand beside the original."),
    ] = None,
    fit: Annotated[str, typer.Option(help="How the original came to its size.")] = "crop",
    set_: ModelOptions = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", "-y", help="Replace the file of --png.")
    ] = False,
) -> None:
    """Say what is in a file: a recording, an .ecdc, a sound file, or a checkpoint."""
    from streamenc.cli.look.drawing import Look
    from streamenc.cli.look.inspection import inspect_file
    from streamenc.cli.show import print_rows

    if png is None and (original is not None or model is not None):
        raise UsageError("--original and --model are for the image; name it with --png")
    file = filled_in(file)
    if png is not None:
        check_outputs([], overwrite, [file] if original is None else [file, original], [png])
    decoder = (
        None if model is None else load_codec(model, "decoder", "cpu", None, set_, quiet=False)
    )
    print_rows(("", ""), inspect_file(file, png, Look(original, decoder, fit), overwrite))
