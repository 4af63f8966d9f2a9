"""The command engine: an engine in a process of its own, for front doors in others."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from streamenc.addresses import shown_lines
from streamenc.cli.app import app, examples
from streamenc.cli.common import load_codec, log, use_threads
from streamenc.cli.facts.completion import complete_model
from streamenc.cli.parameters import Device, ModelOptions, Quiet, Revision, Threads, Verbose
from streamenc.errors import UsageError

if TYPE_CHECKING:
    from streamenc.codec import Codec
    from streamenc.engine.engine import Engine
    from streamenc.engine.remote.engineserver import EngineServer


@app.command(
    epilog=examples(
        """
        streamenc engine ipc:///run/user/1000/engine -m nano --sessions 512
        streamenc engine tcp://127.0.0.1:5777 -m kyutai/mimi -m hubert --device cuda
        streamenc engine ipc:///tmp/engine -m kyutai/mimi --idle-timeout 60 --drain 30
        """
    )
)
def engine(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="ipc:///path, or tcp://127.0.0.1:port.")
    ],
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
    device: Device = "auto",
    sessions: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many may be open at once.")
    ] = 64,
    max_wait: Annotated[
        float, typer.Option(min=0, metavar="MS", help="How long a hop waits for those of others.")
    ] = 5.0,
    idle_timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Close sessions that nobody calls for so long."),
    ] = None,
    drain: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="At Ctrl-C or SIGTERM, how long open sessions may still go on, or be taken "
            "elsewhere; a second one ends at once.",
        ),
    ] = 10.0,
    until_eof: Annotated[
        bool, typer.Option("--until-eof", hidden=True, help="End where standard input ends.")
    ] = False,
    threads: Threads = None,
    revision: Revision = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run an engine whose sessions are used from other processes.

    They connect with streamenc.RemoteEngine(ADDRESS), need neither torch nor a GPU, and share the
    models, the device and its batches. Who may connect: of ipc the user that runs this, of tcp
    everybody on this machine.
    """
    log(verbose)
    if until_eof:
        from streamenc.serve.processes.lifeline import end_with_parent

        end_with_parent()
    if threads is not None:
        use_threads(threads)
    from streamenc.engine.engine import Engine
    from streamenc.engine.remote.endpoint import Endpoint

    Endpoint(address)  # what may be refused comes before what takes long
    if set_ and len(model) > 1:
        raise UsageError("--set is of one model; run another engine for the others")
    codecs = {}
    for each in model:
        codec = load_codec(each, "both", device, revision, set_, quiet)
        if codec.public_name in codecs:
            raise UsageError(f"-m {each}: {codec.public_name} is served already")
        codecs[codec.public_name] = codec
    with Engine(
        max_sessions=sessions, max_wait_ms=max_wait, idle_timeout_seconds=idle_timeout
    ) as running:
        for codec in codecs.values():
            # Before anybody can connect: nothing of this is done in the middle of live streams.
            for has, side in ((codec.has_encoder, "encoder"), (codec.has_decoder, "decoder")):
                if has:
                    running.warm_blocking(getattr(codec, side))
        _serve(running, codecs, address, drain, quiet)


def _serve(
    running: Engine, codecs: dict[str, Codec], address: str, drain: float, quiet: bool
) -> None:
    from streamenc.engine.remote.engineserver import EngineServer

    with EngineServer(running, codecs, address) as server:
        sessions = running.max_sessions
        device = next(iter(codecs.values())).device
        begun = f"serving {', '.join(codecs)} on {device} at {server.address}, "
        begun += f"{sessions} sessions at most"
        _until_interrupted(server, drain, "" if quiet else begun)
        if not quiet:
            _report(running, server)


def _until_interrupted(server: EngineServer, drain_seconds: float, begun: str) -> None:
    """Says that it has begun, unless that is "", and waits for its end."""
    import anyio
    import anyio.to_thread

    from streamenc.graph.interrupt import on_interrupt

    leaving = False

    def interrupted() -> None:
        nonlocal leaving
        if leaving:
            server.close("it was interrupted")
            return
        leaving = True
        if begun:
            _say(f"no new sessions; ends when none is open, in {drain_seconds:g} s at the latest")
        server.leave(drain_seconds)

    async def go() -> None:
        async with on_interrupt(interrupted):
            if begun:
                _say(begun)
            await anyio.to_thread.run_sync(server.wait)

    anyio.run(go)


def _report(engine: Engine, server: EngineServer) -> None:
    came = server.statistics()
    _say(str(engine.statistics()))
    _say(
        f"clients   {came.greeted}; {came.gone} broke off, {came.dismissed} were dismissed"
        + (f", the last as {came.last_offence}" if came.last_offence else "")
    )
    _say(f"calls     {came.calls}; {came.lost} were not answered, as their client was gone")


def _say(text: str) -> None:
    print(shown_lines(text), file=sys.stderr, flush=True)
