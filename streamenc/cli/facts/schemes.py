"""The command help: what sources, sinks and nodes from outside there are; the options of each."""

from __future__ import annotations

from contextlib import suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from streamenc.cli.app import app, examples
from streamenc.errors import UsageError

if TYPE_CHECKING:
    from streamenc.cli.facts.meanings import Option
    from streamenc.io import Entry

# Of a source and of a sink, as they stand in a command.
EXAMPLES = {
    "mic:": ("streamenc encode 'mic:USB?rate=48000' tokens.arrows", ""),
    "camera:": ("streamenc encode 'camera:?size=640x480&fps=10' - -m facebook/dinov2-small", ""),
    "screen:": ("streamenc encode 'screen:?fps=5' - -m facebook/dinov2-small", ""),
    "test:": ("streamenc encode 'test:bars?fps=25&seconds=4' - -m facebook/dinov2-small", ""),
    "text:": ("streamenc encode 'text:talk.jsonl?partials=true' vectors.arrows -m ./MiniLM", ""),
    ".txt": ("streamenc encode lines.txt vectors.arrows -m ./MiniLM", ""),
    ".srt": ("streamenc encode film.srt vectors.arrows -m ./MiniLM", ""),
    ".vtt": ("streamenc encode talk.vtt vectors.arrows -m ./MiniLM", ""),
    "text+zmq+tcp:": (
        "streamenc encode 'text+zmq+tcp://127.0.0.1:5556?socket=pull' vectors.arrows -m ./MiniLM",
        "",
    ),
    "text+zmq+ipc:": (
        "streamenc encode text+zmq+ipc:///tmp/captions vectors.arrows -m ./MiniLM",
        "",
    ),
    "text+mqtt:": (
        "streamenc encode text+mqtt://localhost/captions vectors.arrows -m ./MiniLM",
        "",
    ),
    "text+mqtts:": ("streamenc encode text+mqtts://broker/captions vectors.arrows -m ./MiniLM", ""),
    "speaker:": ("", "streamenc decode tokens.arrows 'speaker:?buffer_ms=200'"),
    "null:": ("", "streamenc encode talk.flac null:"),
    "pcm:": (
        "streamenc encode 'pcm:-?rate=16000&format=s16le' tokens.arrows",
        "streamenc decode tokens.arrows 'pcm:-?format=f32le'",
    ),
    "-": (
        "streamenc encode '-?channel=0' tokens.arrows",
        "streamenc encode talk.flac '-?values=yes' -m mel",
    ),
    "zmq+tcp:": (
        "streamenc listen 'zmq+tcp://127.0.0.1:5555?mode=credit' tokens.arrows",
        "streamenc encode mic: 'zmq+tcp://127.0.0.1:5555?mode=credit'",
    ),
    "zmq+ipc:": (
        "streamenc listen 'zmq+ipc:///tmp/tokens?mode=credit'",
        "streamenc encode mic: 'zmq+ipc:///tmp/tokens?mode=credit'",
    ),
    "mqtt:": (
        "streamenc listen 'mqtt://localhost/tokens?qos=1'",
        "streamenc encode mic: 'mqtt://localhost/tokens?qos=1'",
    ),
    "ws:": (
        "streamenc listen ws://127.0.0.1:8765/v1/room/talk",
        "streamenc encode mic: ws://127.0.0.1:8765/v1/room/talk",
    ),
    "wss:": (
        "streamenc listen 'wss://host/v1/room/talk?timeout_s=10'",
        "streamenc encode mic: 'wss://host/v1/room/talk?timeout_s=10'",
    ),
    "mqtts:": (
        "streamenc listen 'mqtts://broker/tokens?keepalive=60'",
        "streamenc encode mic: 'mqtts://broker/tokens?keepalive=60'",
    ),
    ".arrows": (
        "streamenc decode tokens.arrows talk.wav",
        "streamenc encode mic: 'tokens.arrows?flush_ms=1000'",
    ),
    ".parquet": (
        "streamenc decode tokens.parquet talk.wav",
        "streamenc encode talk.flac tokens.parquet",
    ),
    ".npz": ("streamenc decode tokens.npz talk.wav", "streamenc encode talk.flac tokens.npz"),
    ".ecdc": (
        "streamenc decode music.ecdc music.flac",
        "streamenc encode music.flac music.ecdc -m facebook/encodec_24khz",
    ),
    ".jsonl": (
        "streamenc decode tokens.jsonl talk.wav",
        "streamenc encode talk.flac 'tokens.jsonl?values=yes' -m mel",
    ),
}


@app.command(
    "help",
    epilog=examples(
        """
        streamenc help
        streamenc help mic:
        streamenc help zmq+tcp:
        streamenc help .arrows
        """
    ),
)
def help_(
    scheme: Annotated[
        str | None,
        typer.Argument(
            metavar="[SCHEME]",
            help="mic:, zmq+tcp:, .arrows, talk.wav, ..., or a node from outside; all.",
        ),
    ] = None,
) -> None:
    """List the sources, sinks and nodes from outside, or say what options one of them has."""
    from streamenc import plugins
    from streamenc.cli.facts.meanings import class_options, summary
    from streamenc.cli.show import print_rows, print_text
    from streamenc.nodes.named import node_class

    if scheme is None:
        rows = [
            (key, what, _summary(entry))
            for what, table in (("source", sources()), ("sink", sinks()))
            for key, entry in table.items()
        ]
        for name in plugins.known("nodes"):
            try:
                rows.append((name, "node", summary(node_class(name))))
            except UsageError as error:
                plugins.leave_out(error)
        rows.append(("FILE, URL", "source", "Any file, and any address, that FFmpeg opens."))
        print_rows(("", "", ""), rows)
        return
    if is_node(scheme):
        node = node_class(scheme)
        print_text(f"{scheme} as a node. {summary(node)}")
        _print_options(class_options(node, _classes(), addressed=False))
        print_text(f'Example: node = "{scheme}", in a pipeline file')
        return
    key = named(scheme)
    for what, entries in (("source", _readers(key)), ("sink", _writers(key))):
        for entry in entries:
            cls = entry.load()
            kind = f" of {entry.kind}" if len(entries) > 1 else ""
            print_text(f"{key} as a {what}{kind}. {summary(cls)}")
            _print_options(class_options(cls, _classes()))
        if entries:
            print_text(f"Example: {example(key, what)}\n")


def _print_options(options: list[Option]) -> None:
    from streamenc.cli.show import print_rows, print_text

    if options:
        print_rows(("option", "type", "default", ""), [each.row() for each in options])
    else:
        print_text("It has no options.")


def sources() -> dict[str, Entry]:
    """What stands in `help` -> the source, but for files and addresses of media."""
    from streamenc import io

    entries = {**io.SOURCES, **io.from_outside("input")}
    return {_shown(key): entry for key, entry in entries.items()}


def sinks() -> dict[str, Entry]:
    """What stands in `help` -> the sink."""
    from streamenc import io

    entries = {**io.SINKS, **io.from_outside("output")}
    return {_shown(key): entry for key, entry in entries.items()}


def is_node(word: str) -> bool:
    """Whether it names a node from outside: by its name, or as a "module:Class" that is there."""
    from streamenc import plugins

    head = word.partition(":")[0]
    if word in plugins.known("nodes"):
        return True
    is_path = plugins.by_path(word) is not None and f"{head}:" not in {*sources(), *sinks()}
    return is_path and find_spec(head.partition(".")[0]) is not None


def named(scheme: str) -> str:
    """As it stands in `help`: "mic:" of mic, mic: or mic:USB; ".wav" of talk.wav or .wav.

    Raises UsageError that lists near ones.
    """
    from streamenc import io

    plain = scheme.partition("?")[0]
    word, colon, _ = plain.partition(":")
    known = {*sources(), *sinks()} | {f"{name}:" for name in io.MEDIA_SCHEMES}
    suffix = PurePath(plain).suffix.lower() or plain
    for key in (plain, f"{word.lower()}:", suffix, f".{word.lower()}"):
        if key in known:
            return key
    if not colon and PurePath(plain).suffix:
        return suffix
    near = get_close_matches(f"{word}:", known, 3, 0.5)
    raise UsageError(
        f"{scheme!r} is no scheme or file ending; "
        + (f"near are {', '.join(near)}; " if near else "")
        + "`streamenc help` lists all"
    )


def example(key: str, what: str) -> str:
    """A command with it as a "source" or a "sink"."""
    from streamenc import io

    if key in EXAMPLES:
        return EXAMPLES[key][what == "sink"]
    if key[0] == ".":
        target = f"talk{key}"
    else:
        target = f"{key}//host/talk" if key.removesuffix(":") in io.MEDIA_SCHEMES else key
    if what == "sink":
        return f"streamenc decode tokens.arrows {target}"
    return f"streamenc encode {target} tokens.arrows"


def _summary(entry: Entry) -> str:
    """Or what to install, where it needs an extra that is not there."""
    from streamenc.cli.facts.meanings import summary

    try:
        return summary(entry.load())
    except UsageError as error:
        return str(error)


def _classes() -> dict[str, type]:
    """Those of files and addresses of media, and of all that needs no extra, by name."""
    from streamenc import io

    found: dict[str, type] = {}
    for entry in (*io.SOURCES.values(), *io.SINKS.values(), *io.MEDIA_KINDS.values()):
        with suppress(UsageError):
            found[entry.path.partition(":")[2]] = entry.load()
    return found


def _shown(key: str) -> str:
    return key if key[0] in "-." else f"{key}:"


def _readers(key: str) -> list[Entry]:
    from streamenc import io

    if key in sources():
        return [sources()[key]]
    is_media = key.startswith(".") or key.removesuffix(":") in io.MEDIA_SCHEMES
    writes_no_media = key in sinks() and sinks()[key].kind == ""
    return [] if writes_no_media or not is_media else list(io.MEDIA_KINDS.values())


def _writers(key: str) -> list[Entry]:
    return [sinks()[key]] if key in sinks() else []
