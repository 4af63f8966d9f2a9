"""The program `streamenc` without its commands, which the modules beside it add."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from streamenc import __version__

Run = TypeVar("Run", bound=Callable[..., Any])

EXIT_FAILED, EXIT_USAGE, EXIT_CANCELLED = 1, 2, 130

# Standard input or output with options, as in `-?values=yes`, looks like an option of the program;
# with another hyphen it does not.
PIPE, HIDDEN = "-?", "\u2010?"


class Command(TyperCommand):
    """A command whose inputs and outputs may be `-?NAME=VALUE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = [HIDDEN + a.removeprefix(PIPE) if a.startswith(PIPE) else a for a in args]
        rest = super().parse_args(ctx, args)
        ctx.params = {name: _shown(value) for name, value in ctx.params.items()}
        return rest


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_shown(each) for each in value)
    if isinstance(value, str) and value.startswith(HIDDEN):
        return PIPE + value.removeprefix(HIDDEN)
    return value


class App(typer.Typer):
    """Its commands are of the class above."""

    def command(self, name: str | None = None, **how: Any) -> Callable[[Run], Run]:
        return super().command(name, cls=Command, **how)


app = App(
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
    "Options of a source or sink stand in its query: "
    "[bold]zmq+tcp://127.0.0.1:5555?mode=credit[/bold]; "
    "[bold]streamenc help mic:[/bold] says which there are.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"streamenc {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What stands before the command."""


def examples(text: str) -> str:
    """Examples for a command's help, one on each line."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]{line}[/cyan]" for line in lines)])
