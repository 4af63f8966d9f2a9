"""What the commands share: the log, the model, outputs that are free, and a graph that runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from streamenc.addresses import log_to_stderr, shown_address
from streamenc.cli.app import EXIT_CANCELLED
from streamenc.errors import NodeError, OutputError, UsageError

if TYPE_CHECKING:
    from streamenc.graph.report import GraphReport
    from streamenc.pipeline.builder import Pipeline


def log(verbose: bool) -> None:
    """Warnings go to standard error, and what happens too where `verbose`."""
    log_to_stderr(logging.INFO if verbose else logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own


def load_codec(
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

    given: dict[str, Any] = {**named_values("--set", options)}
    given |= {name: value for name, value in (named or {}).items() if value is not None}
    status = f"loading {escape(model)}"
    with nullcontext() if quiet or not console.is_terminal else console.status(status):
        codec = load(model, part=part, device=device, revision=revision, **given)
    return codec


def named_values(option: str, given: list[str] | None) -> dict[str, str]:
    """What an option of several NAME=VALUE says. Raises UsageError for what is none."""
    values = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise UsageError(f"{option} takes NAME=VALUE; got {each!r}")
        values[name] = value
    return values


def check_outputs(
    targets: Sequence[str],
    overwrite: bool,
    inputs: Sequence[str] = (),
    files: Sequence[Path | None] = (),
) -> None:
    """Raises UsageError where an output is an input, is named twice, or exists.

    targets  Of sinks.
    files    What is written beside: reports, images, graphs.
    """
    from streamenc.io import input_file, output_file
    from streamenc.io.files.output import is_taken

    if sum(_is_standard_output(target) for target in targets) > 1:
        raise UsageError("several outputs go to standard output; name files for all but one")
    sources = [path for path in map(input_file, inputs) if path is not None]
    named: set[str] = set()
    outputs = [(target, output_file(target)) for target in targets]
    outputs += [(str(path), path) for path in files if path is not None]
    for target, path in outputs:
        place = target if path is None else os.path.realpath(path)
        if place in named:
            raise UsageError(f"{shown_address(target)} is named twice as an output")
        named.add(place)
        if path is None:
            continue
        if any(_is_same(path, source) for source in sources):
            raise UsageError(f"{path} is the input; name another file as the output")
        if not overwrite and is_taken(path):
            raise UsageError(f"{path} exists; pass --overwrite to replace it, or name another file")


def _is_standard_output(target: str) -> bool:
    return target.partition("?")[0].removeprefix("pcm:") == "-"


def _is_same(path: Path, source: Path) -> bool:
    return path.is_file() and source.is_file() and path.samefile(source)


def run_pipeline(
    pipeline: Pipeline,
    stats: Path | None,
    quiet: bool,
    threads: int | None = None,
    *,
    overwrite: bool = False,
) -> GraphReport:
    """Runs to the end or Ctrl-C, with progress and a report unless `quiet`, also of what failed.

    What is not whole is told in any case.

    stats      Where the report goes as JSON.
    threads    Of torch in this process, in short steps too; None is its own number, and 1 in those.
    overwrite  Whether a file at `stats` is replaced.

    Raises what `Graph.run` raises, OutputError where `stats` cannot be written, and typer.Exit
    where it was cancelled.
    """
    import anyio

    from streamenc.cli.show import console, print_report, progress, write_stats

    async def go() -> GraphReport:
        sink = next(iter(pipeline.sinks), None)
        if pipeline.devices and pipeline.devices != ["cpu"] and not quiet:
            console.print(f"streamenc: computing on {_described(pipeline.devices)}")
        await pipeline.warm()
        if quiet or sink is None:
            return await pipeline.graph.run(handle_signals=True)
        async with progress(pipeline.graph, sink, partial(_duration, pipeline)):
            return await pipeline.graph.run(handle_signals=True)

    if threads is not None:
        use_threads(threads)
    failure: NodeError | None = None
    try:
        report = anyio.run(go)
    except NodeError as error:
        failure, report = error, pipeline.graph.report()
    ran = failure is None or report.wall_seconds > 0  # else all of it is zeros
    if stats is not None and ran:
        write_stats(report, stats, overwrite)
    if not quiet and ran and not is_closed_pipe(failure):
        print_report(report, pipeline.devices)
    if failure is not None:
        raise failure
    if quiet and report.outcome != "cancelled":
        for sentence in report.not_whole:
            logging.getLogger(__name__).warning("%s", sentence)
    if report.outcome == "cancelled":
        raise typer.Exit(EXIT_CANCELLED)
    return report


def _described(devices: list[str]) -> str:
    from streamenc.registry import compute_devices

    known = {found.name: found.description for found in compute_devices()}
    return " and ".join(f"{name} ({known[name]})" if name in known else name for name in devices)


def is_closed_pipe(error: NodeError | None) -> bool:
    """Whether what reads standard output has closed it, as `head` does: no failure of ours."""
    cause = None if error is None else error.__cause__
    return isinstance(cause, OutputError) and isinstance(cause.__cause__, BrokenPipeError)


def use_threads(threads: int) -> None:
    """Sets torch's number for this process, and the one of short steps."""
    import torch

    from streamenc.threads import set_short_step_threads

    torch.set_num_threads(threads)
    set_short_step_threads(threads)


def _duration(pipeline: Pipeline) -> float | None:
    """Length of the input, where it is known: a file's, once it is open."""
    return pipeline.sources[0].duration_seconds
