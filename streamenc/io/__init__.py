"""Sources and sinks, one file per kind, found by URL scheme or by file ending.

    source("talk.flac")                         any file or URL that PyAV opens
    source("mic:USB?rate=48000")                a microphone whose name contains USB
    sink("zmq+tcp://127.0.0.1:5555?mode=credit")  a lossless token stream
    sink("tokens.arrows")                       a recording

    source("pcm:-?rate=16000")                  raw PCM on standard input
    source("clip.mkv?stream=1")                 a file, with an option
    source("clip.mkv", kind="video")            its pictures
    source("clip.mkv", kind="av")               its sound and its pictures, on one clock
    source("camera:")                           a camera

Options are the query (`?name=value&...`) or keyword arguments; an unknown one is a UsageError that
lists the known ones. The query of a URL that PyAV opens belongs to its server, so such a URL takes
keyword arguments only. Modules are imported on demand: what is not used costs nothing.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import parse_qsl

from streamenc.errors import UsageError
from streamenc.node import Sink, Source

# scheme -> "module:class". The class is called with what stands between the scheme and the query
# (for a URL with a host: the whole URL without its query), and the options as keyword arguments.
SOURCES = {
    "-": "streamenc.io.pcm:PcmSource",
    "mic": "streamenc.io.device:Microphone",
    "zmq+tcp": "streamenc.io.zeromq:ZmqSource",
    "zmq+ipc": "streamenc.io.zeromq:ZmqSource",
    "mqtt": "streamenc.io.mqtt:MqttSource",
    "mqtts": "streamenc.io.mqtt:MqttSource",
    ".arrows": "streamenc.io.recording:RecordingSource",
    ".ecdc": "streamenc.io.ecdc:EcdcSource",
    "pcm": "streamenc.io.pcm:PcmSource",
    ".pcm": "streamenc.io.pcm:PcmSource",
    ".raw": "streamenc.io.pcm:PcmSource",
    "camera": "streamenc.io.camera:Camera",
    "screen": "streamenc.io.screen:Screen",
    "test": "streamenc.io.pattern:PatternSource",
    "*": "streamenc.io.media:MediaSource",
}
# What opens files and URLs of media, by what is wanted of them.
MEDIA_KINDS = {
    "audio": "streamenc.io.media:MediaSource",
    "video": "streamenc.io.video:VideoSource",
    "av": "streamenc.io.audiovideo:AudioVideoSource",
}
# What the schemes give that can give only one kind.
ONLY_KIND = {
    "-": "audio", "mic": "audio", "pcm": "audio", ".pcm": "audio", ".raw": "audio",
    "camera": "video", "screen": "video", "test": "video",
}  # fmt: skip
SINKS = {
    "-": "streamenc.io.jsonlines:JsonLinesSink",
    "null": "streamenc.io.null:NullSink",
    "speaker": "streamenc.io.device:Speaker",
    "zmq+tcp": "streamenc.io.zeromq:ZmqSink",
    "zmq+ipc": "streamenc.io.zeromq:ZmqSink",
    "mqtt": "streamenc.io.mqtt:MqttSink",
    "mqtts": "streamenc.io.mqtt:MqttSink",
    ".arrows": "streamenc.io.recording:RecordingSink",
    ".ecdc": "streamenc.io.ecdc:EcdcSink",
    ".jsonl": "streamenc.io.jsonlines:JsonLinesSink",
    ".wav": "streamenc.io.audiofile:AudioFileSink",
    ".flac": "streamenc.io.audiofile:AudioFileSink",
    ".ogg": "streamenc.io.audiofile:AudioFileSink",
    ".opus": "streamenc.io.audiofile:AudioFileSink",
    ".mp4": "streamenc.io.videofile:VideoFileSink",
    ".mov": "streamenc.io.videofile:VideoFileSink",
    ".mkv": "streamenc.io.videofile:VideoFileSink",
    ".webm": "streamenc.io.videofile:VideoFileSink",
}
# Schemes that PyAV opens itself.
MEDIA_SCHEMES = {
    "http", "https", "rtsp", "rtmp", "rtmps", "srt", "udp", "tcp", "rtp", "file", "hls"
}  # fmt: skip


def source(target: str, kind: str = "", **options: Any) -> Source:
    """The source that `target` names, not yet opened.

    kind  What is wanted: "audio", "video", or "av", both as one "mux". "" takes what the source
          gives, of files and URLs of media the audio. Streams of tokens are what they are.

    Raises UsageError where nothing fits `target`, or where it gives no such kind.
    """
    if kind not in ("", *MEDIA_KINDS):
        raise UsageError(f"kind must be one of {', '.join(MEDIA_KINDS)}; got {kind!r}")
    media = MEDIA_KINDS[kind or "audio"]
    made: Source = _make(target, options, {**SOURCES, "*": media}, "input", kind)
    return made


def sink(target: str, **options: Any) -> Sink:
    """The sink that `target` names, not yet opened. Raises UsageError where no kind fits."""
    made: Sink = _make(target, options, SINKS, "output")
    return made


def _make(
    target: str, options: dict[str, Any], table: dict[str, str], what: str, kind: str = ""
) -> Any:
    scheme = _scheme(target)
    if scheme in table:
        address, _, query = target.partition("?")
        options = {**dict(parse_qsl(query, keep_blank_values=True)), **options}
        key = scheme
        if "://" not in address and scheme != "-":
            address = address.partition(":")[2]
    elif scheme and scheme not in MEDIA_SCHEMES:
        known = ", ".join(sorted(k for k in table if k[0] not in ".*"))
        raise UsageError(
            f"unknown scheme {scheme + ':'!r} in {what} {target!r}; known are {known}, or a file"
        )
    else:
        address = target
        if not scheme and "?" in target and not Path(target).exists():
            address, _, query = target.partition("?")
            options = {**dict(parse_qsl(query, keep_blank_values=True)), **options}
        key = PurePath(address).suffix.lower() if not scheme else "*"
        if key not in table:
            key = "*"
        if key not in table:
            known = ", ".join(sorted(k for k in table if k[0] == "."))
            raise UsageError(f"cannot write {target!r}: known file endings are {known}")
    only = ONLY_KIND.get(key, kind)
    if kind and only != kind:
        raise UsageError(
            f"{target!r} gives {only}, but {kind} was wanted; take another input, or what "
            f"works on {only}"
        )
    module, _, name = table[key].partition(":")
    cls = getattr(import_module(module), name)
    known_options = list(inspect.signature(cls).parameters)[1:]
    for option in options:
        if option not in known_options:
            raise UsageError(
                f"{what} {target!r} has no option {option!r}; it has "
                + (", ".join(known_options) or "none")
            )
    return cls(address, **options)


def _scheme(target: str) -> str:
    """ "" for a path. A single letter before the colon is a Windows drive, not a scheme."""
    if target == "-" or target.startswith("-?"):
        return "-"
    head, colon, _ = target.partition(":")
    is_scheme = bool(colon) and len(head) > 1 and head.replace("+", "").isalnum()
    return head.lower() if is_scheme else ""
