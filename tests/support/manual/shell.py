"""Lines of the manual's shell blocks, run in this process, with stand-ins for other programs."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import anyio
import typer

import streamenc
from streamenc.cli.main import app, main
from streamenc.errors import NodeError
from tests.support.manual.files import samples, transcript, wave
from tests.support.piped import standard_input


class Done(NamedTuple):
    """How a command ended: its exit code, standard output and standard error."""

    code: int
    out: bytes
    error: str


def run_streamenc(words: list[str], given: bytes | None = None) -> Done:
    """`streamenc WORDS`, with what is piped into it; standard output leads to a program."""
    error, code = io.StringIO(), 0
    piped = contextlib.nullcontext() if given is None else standard_input(given)
    with (
        tempfile.TemporaryFile() as kept,
        io.TextIOWrapper(kept, encoding="utf-8", write_through=True) as out,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
        piped,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        try:
            with mock.patch.object(sys, "argv", ["streamenc", *words]):
                main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        kept.seek(0)
        return Done(code, kept.read(), error.getvalue())


def other_program(words: list[str], given: bytes | None) -> bytes:
    """What another program of a pipe makes of what it is given."""
    match words:
        case ["arecord", "-f", "S16_LE", "-r", "16000"] | ["sox", _, "-t", "wav", "-"]:
            return wave()
        case ["sox", _, "-t", "raw", "-r", "16000", *_]:
            return samples(16_000)
        case ["ffmpeg", "-i", _, "-f", "s16le", "-ar", "24000", *_]:
            return samples(24_000)
        case ["cat", file]:
            return Path(file).read_bytes()
        case ["recogniser"]:
            return transcript().encode()
        case ["sox", "-", "-n", "stats"]:
            assert given is not None and given[:4] == b"RIFF" and len(given) > 1000
        case ["aplay", "-f", "S16_LE", "-r", "16000"]:
            assert given is not None and len(given) > 1000 and given[:4] != b"RIFF"
        case ["head"]:
            assert given
        case _:
            raise AssertionError(f"no stand-in for {words}")
    return b""


def outputs(words: list[str]) -> list[str]:
    """The files that a command is to make."""
    if words[0].startswith("-"):
        return []
    group = typer.main.get_command(app)
    command = group.commands[words[0]]  # type: ignore[attr-defined]
    given = command.make_context(words[0], words[1:]).params
    named = [*(given.get("outputs") or []), given.get("output"), given.get("png")]
    if words[0] == "verify":
        named.append(given.get("json_"))
    files = [str(each) for each in named if each and not re.match(r"[a-z+]+:|-$", str(each))]
    return [file.partition("?")[0] for file in files]


@contextlib.contextmanager
def published(url: str, recording: Path) -> Iterator[None]:
    """Somebody sends a recording: over ZeroMQ once somebody listens, to a room again and again."""
    room, over = url.startswith("ws"), threading.Event()

    def send() -> None:
        while not over.is_set():
            with streamenc.Pipeline() as pipeline:
                tokens = pipeline.source("tokens", str(recording))
                options = {} if room else {"wait_subscribers": 1}
                pipeline.sink("out", url, tokens, options=options)
                # A room may not have let go of who sent to it before.
                with contextlib.suppress(*([NodeError] if room else [])):
                    anyio.run(pipeline.run)
            if not room:
                return
            over.wait(0.1)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    yield
    over.set()
    sender.join(20)
    assert not sender.is_alive()
