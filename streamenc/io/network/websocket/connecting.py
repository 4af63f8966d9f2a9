"""`connect`: a live stream at a server, with all that one may say about it."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec

from streamenc import options
from streamenc.errors import UsageError
from streamenc.io.network.websocket.courier import Patience
from streamenc.io.network.websocket.dialing import Dialer, Line, read_key
from streamenc.io.network.websocket.ledger import Ledger, Snapshot
from streamenc.io.network.websocket.liveclient import ClientStream, Event
from streamenc.io.network.websocket.livemessages import Direction, Format, Layout, Open, Policy

PATH = "/v1/stream"
WINDOW = 256
KEEP_BYTES = 64 * 2**20
# What some arguments may be, which msgspec's errors do not say.
CHOICES = {
    "direction": get_args(Direction),
    "format": get_args(Format),
    "layout": get_args(Layout),
    "policy": get_args(Policy),
}


def connect(
    address: str,
    *,
    model: str,
    direction: str = "encode",
    format: str = "",
    rate: float | None = None,
    channels: int | None = None,
    codebooks: int | None = None,
    dtype: str = "",
    size: str = "",
    layout: str = "books",
    hops: int = 1,
    vad: bool | Mapping[str, Any] | None = None,
    window: int = WINDOW,
    policy: str = "block",
    snapshot: Snapshot | None = None,
    addresses: Sequence[str] = (),
    key: str = "",
    key_file: str | Path = "",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
    patience_seconds: float = 30.0,
    give_up_seconds: float | None = None,
    connect_seconds: float = 10.0,
    silent_seconds: float = 15.0,
    keep_bytes: int = KEEP_BYTES,
    on_event: Callable[[Event], None] | None = None,
) -> ClientStream:
    """A live stream, to be used as `async with connect(...) as stream`.

    Args:
        address: ws://HOST:PORT of a server, or wss:// with TLS; a path, where it has one in front.
        model: A name that the server lists.
        direction: "encode", "decode", or "echo", which is both.
        format: What `send` takes, as docs/server lists it; "" is float32 or int16 where the model
            takes sound, JPEG where it takes images, and codes where it decodes them.
        rate: Samples or images a second that come; None for the model's own.
        channels: Of the sound that comes; None for one.
        codebooks: How many come out; None for all.
        dtype: What features are rounded to: "float32", "float16" or "bfloat16".
        size: "WIDTHxHEIGHT" that images are brought to; "" as the model has it.
        layout: How codes come out: "books", "flat" or "delay".
        hops: That a piece covers.
        vad: Tells when speech starts and stops; options as docs/server has them.
        policy: What happens at the server to what does not fit there: "block", "drop_oldest" or
            "close".
        window: Pieces that may wait here for whoever iterates.
        snapshot: What another stream of the same model was, to go on from.
        addresses: More servers: where the first is gone, or full, the next one is tried.
        key: What the server knows us by; `key_file` has it in its first line.
        headers: Sent beside our own.
        tls: Whom to trust; None for the system's certificates.
        patience_seconds: How long a server that is full is asked again, at first.
        give_up_seconds: How long to look for a server after a disconnection; None for as long as
            the server keeps the stream.
        connect_seconds: Within which a connection must be there, and its first answer.
        silent_seconds: A connection whose other end is silent for so long is given up.
        keep_bytes: Of input that the server may want again: `send` waits where there are more.
        on_event: Called with each event, in the event loop; it must not wait.

    Raises:
        UsageError: Where an argument makes no sense.
    """
    speech = {} if vad is True else None if vad is None or vad is False else dict(vad)
    given = {
        "type": "open",
        "model": model,
        "direction": direction,
        "format": format,
        "rate": rate,
        "channels": channels,
        "codebooks": codebooks,
        "dtype": dtype,
        "size": size,
        "layout": layout,
        "hops": hops,
        "vad": speech,
        "window": window,
        "policy": policy,
        "snapshot": snapshot is not None,
    }
    try:
        asked = msgspec.convert(given, Open)
    except msgspec.ValidationError as error:
        named = str(error).rpartition("$.")[2].rstrip("`")
        wanted = f"; wanted one of {', '.join(CHOICES[named])}" if named in CHOICES else ""
        raise UsageError(f"cannot open such a stream: {error}{wanted}") from None
    if key and key_file:
        raise UsageError("got 'key' and 'key_file'; one of them is enough")
    connect_seconds = options.number("connect_seconds", connect_seconds, 0.1, 600.0)
    silent_seconds = options.number("silent_seconds", silent_seconds, 1.0, 3600.0)
    line = Line(
        read_key(key_file) if key_file else key, headers, tls, connect_seconds, silent_seconds
    )
    patience = Patience(
        options.number("patience_seconds", patience_seconds, 0.0, 86_400.0),
        connect_seconds,
        None
        if give_up_seconds is None
        else options.number("give_up_seconds", give_up_seconds, 0.0, 86_400.0),
    )
    ledger = Ledger(asked, options.integer("keep_bytes", keep_bytes, 1, 2**40), snapshot)
    dialer = Dialer([address, *addresses], PATH, line)
    # Nobody said whether sound or images come: sound may be of both types then.
    formats = (format,) if format or direction == "decode" else ("f32", "")
    pts = snapshot.pts if snapshot else 0
    return ClientStream(ledger, dialer, patience, pts, on_event, formats)
