"""Sources and sinks, one file per kind, found by URL scheme or by file ending.

    source("talk.flac")                         any file or URL that PyAV opens
    source("mic:USB?rate=48000")                a microphone whose name contains USB
    sink("zmq+tcp://127.0.0.1:5555?mode=credit")  a lossless token stream
    sink("tokens.arrows")                       a recording

    source("-")                                 what is piped in: sound, JSON lines, or raw PCM
    source("pcm:-?rate=16000")                  raw PCM on standard input
    source("clip.mkv?stream=1")                 a file, with an option
    source("clip.mkv", kind="video")            its images
    source("clip.mkv", kind="av")               its sound and its images, on one clock
    source("camera:")                           a camera
    source("text:talk.jsonl")                   a transcript; "text:-" is what is piped in

Options are the query (`?name=value&...`) or keyword arguments; an unknown one is a UsageError that
lists the known ones. The query of a URL that PyAV opens belongs to its server, so such a URL takes
keyword arguments only. Modules are imported on demand: what is not used costs nothing.

One from outside (see streamenc.plugins) is a class of Source or Sink, called in the same way. What
an Entry says of streamenc's own, such a class says in attributes: `kind`, "" where it has none, and
`device`, False where it has none.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any, Literal
from urllib.parse import parse_qsl

from streamenc import plugins
from streamenc.addresses import check_name, shown_address
from streamenc.errors import UsageError
from streamenc.graph.node import Sink, Source
from streamenc.options import text as checked_text

End = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Entry:
    """What a scheme or a file ending stands for.

    path    "module:class", imported when it is used. The class is called with what stands between
            the scheme and the query (for a URL with a host: the whole URL without its query), and
            the options as keyword arguments.
    kind    The one kind of media that it gives, or as a sink takes: "audio", "video", "av" for
            both, or "text". "" where it gives what is in it, or takes what comes, tokens among
            others.
    device  Whether it is a device, which does not wait and has a clock of its own.
    made    The class itself, of one from outside.
    """

    path: str
    kind: str = ""
    device: bool = False
    made: type[Source] | type[Sink] | None = None

    def load(self) -> Any:
        """The class. Raises UsageError where it needs an extra that is not there."""
        if self.made is not None:
            return self.made
        module, _, name = self.path.partition(":")
        return getattr(import_module(module), name)


_STANDARD_INPUT = "streamenc.io.files.standard.standardinput:StandardInput"
_SAMPLES = Entry(_STANDARD_INPUT, "audio")
_ZMQ_SOURCE = Entry("streamenc.io.network.zeromq:ZmqSource")
_MQTT_SOURCE = Entry("streamenc.io.network.mqtt.mqttsource:MqttSource")
_ROOM_SOURCE = Entry("streamenc.io.network.websocket.rooms.roomsource:RoomSource")
_TEXT = Entry("streamenc.io.text.textsource:TextSource", "text")
_ZMQ_TEXT = Entry("streamenc.io.network.text.zeromqtext:ZmqTextSource", "text")
_MQTT_TEXT = Entry("streamenc.io.network.text.mqtttext:MqttTextSource", "text")
SOURCES = {
    "-": Entry(_STANDARD_INPUT),
    "mic": Entry("streamenc.io.devices.sound:Microphone", "audio", device=True),
    "zmq+tcp": _ZMQ_SOURCE,
    "zmq+ipc": _ZMQ_SOURCE,
    "mqtt": _MQTT_SOURCE,
    "mqtts": _MQTT_SOURCE,
    "ws": _ROOM_SOURCE,
    "wss": _ROOM_SOURCE,
    ".arrows": Entry("streamenc.io.files.recording:RecordingSource"),
    ".parquet": Entry("streamenc.io.files.tables.parquet:ParquetSource"),
    ".npz": Entry("streamenc.io.files.tables.npz:NpzSource"),
    ".ecdc": Entry("streamenc.io.files.ecdc:EcdcSource"),
    ".jsonl": Entry("streamenc.io.files.standard.jsonsource:JsonLinesSource"),
    "pcm": Entry("streamenc.io.files.pcm:PcmSource", "audio"),
    ".pcm": _SAMPLES,
    ".raw": _SAMPLES,
    "camera": Entry("streamenc.io.devices.camera:Camera", "video", device=True),
    "screen": Entry("streamenc.io.devices.screen:Screen", "video", device=True),
    "test": Entry("streamenc.io.media.pattern:PatternSource", "video"),
    "text": _TEXT,
    ".txt": _TEXT,
    ".srt": _TEXT,
    ".vtt": _TEXT,
    "text+zmq+tcp": _ZMQ_TEXT,
    "text+zmq+ipc": _ZMQ_TEXT,
    "text+mqtt": _MQTT_TEXT,
    "text+mqtts": _MQTT_TEXT,
}
# What opens all other files and the URLs of media, by the kind that is wanted of them.
MEDIA_KINDS = {
    "audio": Entry("streamenc.io.media.audiosource:MediaSource", "audio"),
    "video": Entry("streamenc.io.media.videosource:VideoSource", "video"),
    "av": Entry("streamenc.io.media.audiovideo:AudioVideoSource", "av"),
}
KINDS = (*MEDIA_KINDS, "text")
_JSON_LINES = Entry("streamenc.io.files.jsonlines:JsonLinesSink")
_ZMQ_SINK = Entry("streamenc.io.network.zeromq:ZmqSink")
_MQTT_SINK = Entry("streamenc.io.network.mqtt.mqttsink:MqttSink")
_ROOM_SINK = Entry("streamenc.io.network.websocket.rooms.roomsink:RoomSink")
_AUDIO_FILE = Entry("streamenc.io.files.soundwriter:AudioFileSink", "audio")
_VIDEO_FILE = Entry("streamenc.io.files.videowriter:VideoFileSink", "av")
_PCM_SINK = Entry("streamenc.io.files.standard.standardoutput:PcmSink", "audio")
SINKS = {
    "-": Entry("streamenc.io.files.standard.standardoutput:StandardOutput"),
    "pcm": _PCM_SINK,
    "null": Entry("streamenc.io.files.null:NullSink"),
    "speaker": Entry("streamenc.io.devices.sound:Speaker", "audio", device=True),
    "zmq+tcp": _ZMQ_SINK,
    "zmq+ipc": _ZMQ_SINK,
    "mqtt": _MQTT_SINK,
    "mqtts": _MQTT_SINK,
    "ws": _ROOM_SINK,
    "wss": _ROOM_SINK,
    ".arrows": Entry("streamenc.io.files.recording:RecordingSink"),
    ".parquet": Entry("streamenc.io.files.tables.parquet:ParquetSink"),
    ".npz": Entry("streamenc.io.files.tables.npz:NpzSink"),
    ".ecdc": Entry("streamenc.io.files.ecdc:EcdcSink"),
    ".jsonl": _JSON_LINES,
    ".pcm": _PCM_SINK,
    ".raw": _PCM_SINK,
    ".wav": _AUDIO_FILE,
    ".flac": _AUDIO_FILE,
    ".ogg": _AUDIO_FILE,
    ".opus": _AUDIO_FILE,
    ".mp4": _VIDEO_FILE,
    ".mov": _VIDEO_FILE,
    ".mkv": _VIDEO_FILE,
    ".webm": _VIDEO_FILE,
}
# Schemes that PyAV opens itself.
MEDIA_SCHEMES = {
    "http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "tcp", "rtp", "file", "hls"
}  # fmt: skip
plugins.reserve("io", (*SOURCES, *SINKS, *MEDIA_SCHEMES))


def source(target: str, kind: str = "", **options: Any) -> Source:
    """The source that `target` names, not yet opened.

    kind  What is wanted: "audio", "video", or "av", both as one "mux", or "text", of a film its
          subtitles. "" takes what the source gives, of files and URLs of media the audio. Streams
          of tokens are what they are.

    Raises UsageError where nothing fits `target`, or where it gives no such kind.
    """
    made: Source = _make(target, options, _sources(kind), "input", kind)
    return made


def sink(target: str, **options: Any) -> Sink:
    """The sink that `target` names, not yet opened. Raises UsageError where no kind fits."""
    made: Sink = _make(target, options, SINKS, "output")
    return made


def output_file(target: str) -> Path | None:
    """The file that the sink which `target` names writes; None of one that writes none.

    It is the file that `sink` makes of it, whatever stands in the name. Of one from outside: what
    follows its scheme, or has its ending. Raises UsageError where no kind fits.
    """
    entry, address, _ = _find(target, SINKS, "output")
    if address in ("", "-") or "://" in address:
        return None
    return Path(address) if entry.made is not None or takes_overwrite(target) else None


def takes_overwrite(target: str) -> bool:
    """Whether the sink that `target` names has the option `overwrite`, as those of files have."""
    return "overwrite" in inspect.signature(sink_entry(target).load()).parameters


def input_file(target: str) -> Path | None:
    """The file that the source which `target` names may read; None of what is none by its name.

    Raises UsageError where nothing fits.
    """
    _, address, _ = _find(target, _sources(""), "input")
    path = address.removeprefix("file://").removeprefix("file:")
    return None if path in ("", "-") or "://" in path else Path(path)


def source_entry(target: str) -> Entry:
    """What is known of the source that `target` names. Raises UsageError where nothing fits."""
    return _find(target, _sources(""), "input")[0]


def sink_entry(target: str) -> Entry:
    """What is known of the sink that `target` names. Raises UsageError where no kind fits."""
    return _find(target, SINKS, "output")[0]


def from_outside(end: End) -> dict[str, Entry]:
    """The sources ("input") or sinks ("output") from outside, by scheme or file ending.

    It imports them; one that cannot be used is named in the log.
    """
    found = {}
    for name, plugin in plugins.known("io").items():
        try:
            entry = _entry(plugin, end)
        except UsageError as error:
            plugins.leave_out(error)
            continue
        if entry is not None:
            found[name] = entry
    return found


def _entry(plugin: plugins.Plugin, end: End) -> Entry | None:
    """What a plugin has for this end; None where it is for the other one. Raises UsageError."""
    found = plugin.load()
    ends = (found, getattr(found, "source", None), getattr(found, "sink", None))
    classes = [cls for cls in ends if isinstance(cls, type) and issubclass(cls, Source | Sink)]
    if not classes:
        raise plugin.broken(
            f"{found!r} is neither a class of Source or Sink, nor has it one as `source` or `sink`"
        )
    wanted = Source if end == "input" else Sink
    for cls in classes:
        if issubclass(cls, wanted):
            kind = getattr(cls, "kind", "")
            if kind not in ("", *KINDS):
                raise plugin.broken(f"its kind is {kind!r}; wanted one of {', '.join(KINDS)}")
            return Entry(plugin.path, kind, bool(getattr(cls, "device", False)), cls)
    return None


def _with_outside(own: dict[str, Entry], key: str, end: End) -> dict[str, Entry]:
    """`own`, and what `key` stands for where it is from outside. Raises UsageError."""
    plugin = None if key in own else plugins.known("io").get(key)
    entry = None if plugin is None else _entry(plugin, end)
    return own if entry is None else {**own, key: entry}


def _sources(kind: str) -> dict[str, Entry]:
    if kind not in ("", *KINDS):
        raise UsageError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if kind == "text":  # also of standard input, and JSON lines are a transcript
        return {**SOURCES, "-": _TEXT, ".jsonl": _TEXT, "*": _TEXT}
    media = MEDIA_KINDS[kind or "audio"]
    # Standard input is sound, or tokens, unless images are wanted of what is piped in.
    piped = {"-": media} if kind in ("video", "av") else {}
    return {**SOURCES, **piped, "*": media}


def _find(target: str, own: dict[str, Entry], what: End) -> tuple[Entry, str, dict[str, str]]:
    """Also the address, and the options of the query."""
    scheme = _scheme(check_name(target))
    address, query = target, ""
    table = _with_outside(own, scheme, what)
    if scheme in table:
        address, _, query = target.partition("?")
        key = scheme
        if "://" not in address and scheme != "-":
            address = address.partition(":")[2]
    elif scheme and scheme not in MEDIA_SCHEMES:
        media = MEDIA_SCHEMES if what == "input" else ()
        names = {*own, *from_outside(what), *media}
        known = ", ".join(sorted(name for name in names if name[0] not in ".*"))
        raise UsageError(
            f"unknown scheme {scheme + ':'!r} in {what} {shown_address(target)!r}; known are "
            f"{known}, or a file, written ./{shown_address(target)} where it has a colon; see "
            "`streamenc help`"
        )
    else:
        if not scheme and "?" in target and not Path(target).exists():
            address, _, query = target.partition("?")
        key = PurePath(address).suffix.lower() if not scheme else "*"
        table = _with_outside(own, key, what)
        if key not in table:
            key = "*"
        if key not in table:
            known = ", ".join(sorted(k for k in {*own, *from_outside(what)} if k[0] == "."))
            raise UsageError(
                f"cannot write {shown_address(target)!r}: known file endings are {known}"
            )
    return table[key], address, dict(parse_qsl(query, keep_blank_values=True))


def _make(
    target: str, options: dict[str, Any], table: dict[str, Entry], what: End, kind: str = ""
) -> Any:
    entry, address, in_query = _find(target, table, what)
    if kind and entry.kind not in ("", kind):
        raise UsageError(
            f"{shown_address(target)!r} gives {entry.kind}, but {kind} was wanted; take another "
            f"input, or what works on {entry.kind}"
        )
    options = {**in_query, **options}
    cls = entry.load()
    parameters = inspect.signature(cls).parameters
    known_options = list(parameters)[1:]
    for option, value in options.items():
        if option not in known_options:
            raise UsageError(
                f"{what} {shown_address(target)!r} has no option {option!r}; it has "
                f"{', '.join(known_options) or 'none'}; see `streamenc help {_help_word(target)}`"
            )
        # Whatever else it may be there is for the class to read.
        if isinstance(value, str) or parameters[option].annotation in (str, "str"):
            checked_text(option, value)
    return cls(address, **options)


def _help_word(target: str) -> str:
    """What `streamenc help` knows it by: "mic:", ".wav", "-"."""
    scheme = _scheme(target)
    if scheme:
        return scheme if scheme == "-" else f"{scheme}:"
    return PurePath(target.partition("?")[0]).suffix.lower()


def _scheme(target: str) -> str:
    """ "" for a path. A single letter before the colon is a Windows drive, not a scheme."""
    if target == "-" or target.startswith("-?"):
        return "-"
    head, colon, _ = target.partition(":")
    is_scheme = bool(colon) and len(head) > 1 and head.replace("+", "").isalnum()
    return head.lower() if is_scheme else ""
