"""`python -m streamenc`, and the program `streamenc`: the command line, imports included."""

from __future__ import annotations

import os
import signal
import sys

from streamenc import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

EXIT_CANCELLED = 130


def main() -> NoReturn:
    """Runs the command line; Ctrl-C ends also its imports, and its end, without a traceback.

    In the middle of an import Python may take an interrupt for the module's own failure, and in
    that of its exit for a failure of what is called then. So there the process is left at once, as
    nothing has been begun, or all is done.
    """
    # A shell may have said that it is not to be heard.
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, _leave)
    try:
        from streamenc.cli.main import main as run

        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        _leave()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if ours:
            signal.signal(signal.SIGINT, lambda *_: os._exit(code))
        raise


def _leave(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"streamenc: cancelled\n")
    os._exit(EXIT_CANCELLED)


if __name__ == "__main__":
    main()
