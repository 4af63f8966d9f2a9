"""The command keys: pairs of keys, by which two ends of zmq+tcp know each other."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from streamenc.cli.app import app, examples


@app.command(
    epilog=examples(
        """
        streamenc keys studio.key > studio.pub
        streamenc keys studio.key --show
        streamenc encode mic: 'zmq+tcp://127.0.0.1:5555?keys=studio.key&allow=listeners.txt'
        streamenc listen 'zmq+tcp://127.0.0.1:5555?keys=my.key&server=studio.pub'
        """
    ),
)
def keys(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="For both keys; keep it to yourself.")
    ],
    show: Annotated[
        bool, typer.Option("--show", help="Print the public key of a file that is there.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Make a pair of keys for zmq+tcp, and print the public one, for the other end."""
    from streamenc.io.network.peers.curve import make_keys, read_pair

    if show:
        print(read_pair(file)[0].decode())
        return
    print(make_keys(file, overwrite))
    print(
        f"{file} has the secret key: keep it to yourself. Printed was the public key: the "
        "other end takes it as 'server' where it connects, as a line of 'allow' where it binds.",
        file=sys.stderr,
    )
