"""The command serve: live streams over HTTP and WebSockets."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamenc.addresses import shown_text
from streamenc.cli.app import app, examples
from streamenc.cli.common import log
from streamenc.cli.facts.completion import complete_model
from streamenc.cli.parameters import ModelOptions, Quiet, Revision, Threads, Verbose
from streamenc.errors import OutputError, UsageError
from streamenc.trust.privatefolder import make_private

if TYPE_CHECKING:
    from streamenc.serve.keyring import Key

NEEDED = {
    "starlette": "starlette",
    "uvicorn": "uvicorn",
    "websockets": "websockets",
    "prometheus_client": "prometheus-client",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(i?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


def _size(text: str) -> int:
    """Bytes: 65536, 64k, 1MiB, 2.5GB."""
    fits = _SIZE.fullmatch(text.strip())
    if fits is None:
        raise typer.BadParameter(f"{text!r}: wanted a number of bytes, as 65536, 64KiB or 1MiB")
    number, letter, binary = fits.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWERS[letter.lower()])


@app.command(
    epilog=examples(
        """
        streamenc serve -m nano
        streamenc serve -m nano -m kyutai/mimi --sessions 64 --bind 127.0.0.1:8765
        streamenc serve -m kyutai/mimi --device all --workers 4 --sessions 2000
        streamenc serve -m nano --bind 0.0.0.0:443 --key-file keys --tls-cert c.pem --tls-key k.pem
        """
    )
)
def serve(
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            "-m",
            help="A model to serve, as for encode; give it several times for several.",
            autocompletion=complete_model,
        ),
    ],
    set_: ModelOptions = None,
    sessions: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many streams may be open at once, those without a connection among them; "
            "an echo is two.",
        ),
    ] = 64,
    bind: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to listen; port 0 is any free one.")
    ] = "127.0.0.1:8765",
    workers: Annotated[int, typer.Option(min=1, max=256, metavar="N", help="I/O processes.")] = 1,
    device: Annotated[
        list[str] | None,
        typer.Option(
            help="As for encode, auto if not given; one engine for each that is given, or all."
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where streams are kept for resuming; $XDG_STATE_HOME/streamenc/sessions if not "
            "given.",
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keys, one a line, KEY or NAME KEY, of which clients need one; $STREAMENC_KEYS "
            "has some, too.",
        ),
    ] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Anybody who can connect may use it, without a key.")
    ] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate with its chain, PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM.")] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Whose pages may connect beside our own, as https://app.example; * for all.",
        ),
    ] = None,
    resume_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="How long a stream waits for its client.")
    ] = 60.0,
    checkpoint_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="How often streams are stored; 0: at the end.")
    ] = 10.0,
    max_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="How old a stream may get; 0: any age.")
    ] = 0.0,
    idle_seconds: Annotated[
        float,
        typer.Option(min=0, metavar="S", help="Close who is silent for so long; 0: never."),
    ] = 60.0,
    handshake_seconds: Annotated[
        float,
        typer.Option(min=0.1, metavar="S", help="Within which a client says what it wants."),
    ] = 10.0,
    webrtc_peers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of one I/O process; it decodes their tracks.")
    ] = 16,
    sessions_per_key: Annotated[
        int, typer.Option(min=0, metavar="N", help="Streams of one key; 0: any number.")
    ] = 0,
    max_message: Annotated[
        int, typer.Option(parser=_size, metavar="SIZE", help="Of a WebSocket message.")
    ] = "1MiB",  # type: ignore[assignment]
    max_queue: Annotated[
        int, typer.Option(parser=_size, metavar="SIZE", help="Of a stream's input that waits.")
    ] = "4MiB",  # type: ignore[assignment]
    max_body: Annotated[
        int, typer.Option(parser=_size, metavar="SIZE", help="Of a file that is sent.")
    ] = "256MiB",  # type: ignore[assignment]
    max_body_seconds: Annotated[
        float, typer.Option(min=0, metavar="S", help="Of sound or images in such a file.")
    ] = 3600.0,
    max_pixels: Annotated[int, typer.Option(min=1, metavar="N", help="Of an image.")] = 2**24,
    max_wait: Annotated[
        float, typer.Option(min=0, metavar="MS", help="How long a hop waits for those of others.")
    ] = 2.0,
    drain: Annotated[
        float,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="At Ctrl-C or SIGTERM, within how long it has ended, with all streams stored; a "
            "second one ends it at once.",
        ),
    ] = 10.0,
    threads: Threads = None,
    revision: Revision = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Serve models to browsers and other machines: streams over WebSockets, files over HTTP.

    Streams go on bit for bit after a connection broke. Without keys, only this machine can connect,
    unless --open is given. See docs/server for the protocol.
    """
    log(verbose)
    if missing := [package for name, package in NEEDED.items() if find_spec(name) is None]:
        raise UsageError(f"serve needs {' and '.join(missing)}: pip install 'streamenc[serve]'")
    import asyncio

    from streamenc.serve.guard import check_origin
    from streamenc.serve.limits import Limits
    from streamenc.serve.processes.listening import Bind
    from streamenc.serve.processes.supervisor import Plan, Supervisor, all_devices
    from streamenc.serve.processes.tlsfiles import tls_context

    if set_ and len(model) > 1:
        raise UsageError("--set is of one model; run another server for the others")
    if twice := next((name for name in model if model.count(name) > 1), None):
        raise UsageError(f"-m {twice} is given twice")
    where = Bind.read(bind)
    keys = _keys(key_file)
    if not (where.loopback or keys or open_):
        raise UsageError(
            f"--bind {bind}: other machines can connect there: give keys (--key-file FILE, or "
            "$STREAMENC_KEYS), or --open if anybody may use it"
        )
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key are given together")
    tls = None
    if tls_cert is not None and tls_key is not None:
        tls = tls_cert.absolute(), tls_key.absolute()
        tls_context(*tls)
    devices = list(dict.fromkeys(device or ["auto"]))
    if "all" in devices:
        if len(devices) > 1:
            raise UsageError("--device all is given alone")
        devices = all_devices()
    limits = Limits(
        sessions=sessions,
        sessions_per_key=sessions_per_key,
        resume_seconds=resume_seconds,
        checkpoint_seconds=checkpoint_seconds,
        idle_seconds=idle_seconds,
        max_seconds=max_seconds,
        max_message_bytes=max_message,
        max_queued_bytes=max_queue,
        max_body_bytes=max_body,
        max_body_seconds=max_body_seconds,
        max_pixels=max_pixels,
        peers=webrtc_peers,
        handshake_seconds=handshake_seconds,
    )
    options = [f"--max-wait={max_wait:g}"]
    options += [f"--set={each}" for each in set_ or []]
    options += [] if threads is None else [f"--threads={threads}"]
    options += [] if revision is None else [f"--revision={revision}"]
    options += ["--verbose"] if verbose else []
    plan = Plan(
        models=model,
        devices=devices,
        engine_options=options,
        bind=where,
        limits=limits,
        workers=workers,
        store=_store(store),
        keys=keys,
        origins=[check_origin(each) for each in origin or []],
        local=where.loopback and not keys and not open_,
        tls=tls,
        drain_seconds=drain,
        verbose=verbose,
    )

    async def go() -> int:
        supervisor = Supervisor(plan, say=_say(quiet), serving=lambda url: print(url, flush=True))
        return await supervisor.run()

    raise typer.Exit(asyncio.run(go()))


def _keys(file: Path | None) -> list[Key]:
    from streamenc.serve.keyring import VARIABLE, keys_of_variable, read_keys

    keys = [] if file is None else read_keys(file)
    return keys + keys_of_variable(os.environ.get(VARIABLE, ""))


def _store(given: Path | None) -> Path:
    """Raises OutputError where it cannot be made."""
    state = os.environ.get("XDG_STATE_HOME", "")
    home = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    folder = (given or home / "streamenc" / "sessions").absolute()
    try:
        make_private(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be the store of streams: {error.strerror or error}; give another "
            "--store"
        ) from None
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise OutputError(f"the store {folder} is not ours to write to: give another --store")
    return folder


def _say(quiet: bool) -> Callable[[str], None]:
    def say(text: str) -> None:
        if not quiet:
            print(f"streamenc: {shown_text(text)}", file=sys.stderr, flush=True)

    return say
