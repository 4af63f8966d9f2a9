"""What the commands share: the log, the model, outputs that are free, and a graph that runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from streamenc.addresses import shown_address
from streamenc.cli.app import EXIT_CANCELLED
from streamenc.errors import UsageError

if TYPE_CHECKING:
    from streamenc.graph.report import GraphReport
    from streamenc.pipeline.builder import Pipeline


def log(verbose: bool) -> None:
    """Warnings go to standard error, and what happens too where `verbose`."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="streamenc: %(message)s")


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


def check_outputs(targets: list[str], overwrite: bool, input: str = "") -> None:
    """Raises UsageError where an output is the input, is named twice, or exists."""
    source = Path(input.partition("?")[0])
    for target in targets:
        path = Path(target.partition("?")[0])
        if path.is_file() and source.is_file() and path.samefile(source):
            raise UsageError(f"{path} is the input; name another file as the output")
        if not overwrite and target != "-" and ":" not in target[2:] and path.is_file():
            raise UsageError(f"{path} exists; pass --overwrite to replace it, or name another file")
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"{shown_address(target)} is named twice as an output")


def run_pipeline(
    pipeline: Pipeline, stats: Path | None, quiet: bool, threads: int | None = None
) -> GraphReport:
    """Runs to the end or Ctrl-C, with progress and a report unless `quiet`.

    stats    Where the report goes as JSON.
    threads  Of torch in this process; None is its own number, or 1 where steps are short.

    Raises what `Graph.run` raises, OutputError where `stats` cannot be written, and typer.Exit
    where it was cancelled.
    """
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
