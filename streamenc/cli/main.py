"""The command line: `streamenc encode | decode | listen | run | export | models | inspect ...`."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module
from typing import NoReturn

from streamenc.addresses import discreet, remember_secrets, shown_text
from streamenc.cli.app import EXIT_CANCELLED, EXIT_FAILED, EXIT_USAGE, app
from streamenc.cli.common import is_closed_pipe
from streamenc.errors import (
    FitError,
    InputError,
    NodeError,
    StreamencError,
    UsageError,
)

# Each adds its commands to `app`, in the order of the help.
COMMANDS = (
    "streaming tokenize serve serving exporting verifying listing facts.schemes facts.zmqkeys"
)
for module in COMMANDS.split():
    import_module(f"streamenc.cli.{module}")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Entry point: every expected error is one line that names the cure, and an exit code.

    arguments  Those of the process where None.
    """
    for argument in sys.argv[1:] if arguments is None else arguments:
        remember_secrets(argument)
    try:
        # Typer returns the code of its own exits, also that of Ctrl-C before a graph runs.
        code = app(arguments, prog_name="streamenc", standalone_mode=False)
        if code == EXIT_CANCELLED:
            print("streamenc: cancelled", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)
    except (UsageError, FitError, InputError) as error:
        _die(str(error), EXIT_USAGE)
    except NodeError as error:
        if is_closed_pipe(error):
            sys.exit(0)
        usage = isinstance(error.__cause__, UsageError | FitError)
        _die(str(error), EXIT_USAGE if usage else EXIT_FAILED)
    except StreamencError as error:
        _die(str(error), EXIT_FAILED)
    except Exception as error:
        # Click's own usage errors know how to print themselves and which code to exit with.
        show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if show is None or code is None:
            _print_traceback(error)
            sys.exit(EXIT_FAILED)
        message = getattr(error, "message", None)
        if isinstance(message, str):
            error.__dict__["message"] = discreet(message)
        show()
        sys.exit(code)


def _print_traceback(error: Exception) -> None:
    """Of a fault of ours, as Python does it, but without secrets."""
    print(discreet("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _die(message: str, code: int) -> NoReturn:
    print(f"streamenc: {shown_text(' '.join(discreet(message).split()))}", file=sys.stderr)
    sys.exit(code)
