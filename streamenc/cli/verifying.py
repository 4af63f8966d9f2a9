"""The command verify: a model beside the published implementation of it, or a set of tokens."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamenc.cli.app import EXIT_FAILED, app, examples
from streamenc.cli.common import check_outputs, load_codec, log
from streamenc.cli.look.setfindings import CheckDisplay, print_check
from streamenc.cli.parameters import Device, ModelOptions, Overwrite, Quiet, Revision, Verbose
from streamenc.errors import UsageError
from streamenc.io.files.output import write_output

if TYPE_CHECKING:
    from streamenc.verify.verification import Verification

DTYPES = ("float64", "float32", "bfloat16", "float16")


@app.command(
    epilog=examples(
        """
        streamenc verify kyutai/mimi --set tail=transformers
        streamenc verify facebook/encodec_24khz --dtype float64 --seconds 12
        streamenc verify ./my-checkpoint --json verified.json
        streamenc verify tokens/
        streamenc verify tokens/ --sample 1000 --repair
        """
    )
)
def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|SET",
            help="As for encode --model; or a folder that streamenc tokenize made.",
        ),
    ],
    set_: ModelOptions = None,
    part: Annotated[str, typer.Option(help="both, encoder or decoder.")] = "",
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Sound to encode; else a bundled clip.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Of sound.")] = 6.0,
    dtype: Annotated[str, typer.Option(help=f"{', '.join(DTYPES)}.")] = "float32",
    device: Device = "auto",
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write what was found as JSON.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Of a set: how many rows are decoded, 16 if not given; 0 loads no model.",
        ),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Of a set: take bad parts out of its manifest; the next tokenize makes them anew.",
        ),
    ] = False,
    revision: Revision = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare a model with the published implementation, or check a set of tokens.

    Encodes a clip with both, and with streamenc in random pieces and at once; compares latents,
    codes, lengths and what is decoded. The published implementation is used where its package is
    installed (transformers, diffusers, ...). Ends with 1 where something differs.

    Of a set, each part has to be there once, with the hashes, rows and frames that its manifest
    says, keys that differ, and tokens that the model has; some rows are decoded. Ends with 1 where
    something is wrong, and says what to do.
    """
    log(verbose)
    if (Path(model) / "plan" / "job.json").is_file():
        _verify_set(Path(model), sample, repair, device, json_, overwrite, quiet)
        return
    if sample is not None or repair:
        raise UsageError(f"--sample and --repair are of a set of tokens; {model!r} is none")
    if dtype not in DTYPES:
        raise UsageError(f"--dtype is one of {', '.join(DTYPES)}; got {dtype!r}")
    if clip is not None and not clip.is_file():
        raise UsageError(f"--clip {clip}: there is no such file")
    check_outputs([], overwrite, files=[json_])
    found, where = _verified(model, part, set_, clip, seconds, dtype, device, revision, quiet)
    if json_ is not None:
        write_output(json_, f"{json.dumps(found.to_dict(), indent=2)}\n".encode(), overwrite)
    _print(found, where)
    if not found.equal:
        raise typer.Exit(EXIT_FAILED)


def _verify_set(
    output: Path,
    sample: int | None,
    repair: bool,
    device: str,
    json_: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    import msgspec

    from streamenc.bulk.readback.finishedset import SAMPLE_ROWS, check_set

    check_outputs([], overwrite, files=[json_])
    with CheckDisplay(quiet) as display:
        found = check_set(
            output,
            sample=SAMPLE_ROWS if sample is None else sample,
            repair=repair,
            device=device,
            tell=display.show,
        )
    if json_ is not None:
        content = msgspec.json.format(msgspec.json.encode(found)) + b"\n"
        write_output(json_, content, overwrite)
    print_check(found)
    if not found.good:
        raise typer.Exit(EXIT_FAILED)


def _verified(
    model: str,
    part: str,
    options: list[str] | None,
    clip: Path | None,
    seconds: float,
    dtype: str,
    device: str,
    revision: str | None,
    quiet: bool,
) -> tuple[Verification, str]:
    import torch

    from streamenc.cli.show import console
    from streamenc.verify.verification import verify as compare

    named = {"dtype": getattr(torch, dtype), "backend": "torch"}
    codec = load_codec(model, part or "both", device, revision, options, quiet, named)
    given = dict(option.split("=", 1) for option in options or [])
    source = model.removeprefix(f"{codec.family}:")
    with nullcontext() if quiet or not console.is_terminal else console.status("comparing"):
        found = compare(
            codec,
            codec.family,
            source,
            seconds=seconds,
            clip=clip,
            revision=revision,
            options=given,
        )
    side = codec.encoder if codec.has_encoder else codec.decoder
    return found, str(side.like.device)


def _print(found: Verification, where: str) -> None:
    from streamenc.cli.show import print_rows, print_text

    rows = [
        (
            finding.what,
            finding.of,
            finding.beside,
            f"{finding.difference:.2g}",
            f"{finding.allowed:.2g}",
            finding.verdict,
            finding.note,
        )
        for finding in found.findings
    ]
    what = f"{found.model} ({found.family}, {found.equality}) in {found.dtype}"
    what += f" on {where}: {found.clip}"
    print_text(what)
    print_rows(("", "of", "beside", "difference", "allowed", "", ""), rows)
    if found.absent:
        print_text(f"Not compared with a published implementation: {found.absent}.")
    print_text(", ".join(f"{name} {version}" for name, version in found.versions.items()))
