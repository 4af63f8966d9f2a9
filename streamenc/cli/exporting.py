"""The command export: a codec's step in ONNX."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from streamenc.cli.app import app, examples
from streamenc.cli.common import check_outputs, load_codec, log
from streamenc.cli.parameters import ModelOptions, Overwrite, Quiet, Revision, Verbose
from streamenc.errors import UsageError


@app.command(
    epilog=examples(
        """
        streamenc export nano nano.onnx
        streamenc export kyutai/mimi mimi.onnx --codebooks 8
        streamenc export kyutai/mimi decoder.onnx --part decoder --codebooks 8
        """
    )
)
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As for encode --model.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The step.")],
    part: Annotated[str, typer.Option(help="encoder or decoder.")] = "encoder",
    codebooks: Annotated[
        int | None, typer.Option("--codebooks", "-n", min=1, help="How many; all if not given.")
    ] = None,
    hops: Annotated[int, typer.Option(min=1, help="Hops in a step.")] = 1,
    set_: ModelOptions = None,
    revision: Revision = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a codec's step in ONNX, with its state in named inputs and outputs.

    Beside OUT.onnx come OUT.start.onnx, the first step, and OUT.json, which says how to step them.
    Needs the extra onnx.
    """
    from streamenc.cli.show import console
    from streamenc.onnx.portable import export_files, written

    log(verbose)
    if part not in ("encoder", "decoder"):
        raise UsageError(f"--part is encoder or decoder; got {part!r}")
    check_outputs([], overwrite, files=written(output))
    codec = load_codec(model, part, "cpu", revision, set_, quiet, {"backend": "torch"})
    side = codec.encoder if part == "encoder" else codec.decoder
    with nullcontext() if quiet or not console.is_terminal else console.status("exporting"):
        made = export_files(side, output, hops=hops, codebooks=codebooks, overwrite=overwrite)
    if not quiet:
        what = "of the codes differ" if part == "encoder" else "of the largest value apart at most"
        console.print(
            f"wrote {output}, {made['start']} and {output.stem}.json: {len(made['state'])} state "
            f"tensors; checked against torch, {made['difference']:.1e} {what}"
        )
