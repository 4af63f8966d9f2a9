"""RoomSink and RoomSource before they are connected: addresses, options and secrets."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from streamenc import io
from streamenc.errors import TransportError, UsageError
from streamenc.io.network.websocket.rooms.roomsink import RoomSink
from streamenc.io.network.websocket.rooms.roomsource import RoomSource

ENDS: list[Any] = [RoomSink, RoomSource]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    "path", ["", "/", "/v1/stream", "/v1/room/", "/v1/room/a b", "/v1/room/a/b"]
)
def test_only_rooms(end: Any, path: str):
    with pytest.raises(UsageError, match="/v1/room/NAME.*streamenc.client"):
        end(f"ws://127.0.0.1:9{path}")


def test_they_are_found_by_their_schemes():
    for scheme in ("ws", "wss"):
        address = f"{scheme}://127.0.0.1:9/v1/room/talk"
        assert isinstance(io.sink(f"{address}?policy=drop&queue=100"), RoomSink)
        assert isinstance(io.source(f"{address}?window=4"), RoomSource)
    assert isinstance(io.source("ws://host/behind/a/proxy/v1/room/talk"), RoomSource)


@pytest.mark.parametrize(
    ("end", "options", "message"),
    [
        (RoomSink, {"policy": "drop_oldest"}, "policy"),
        (RoomSink, {"queue": 1}, "queue"),
        (RoomSource, {"window": 0}, "window"),
        (RoomSource, {"policy": "drop"}, "policy"),
        (RoomSource, {"key": "a", "key_file": "b"}, "one of them"),
        (RoomSource, {"key_file": "/nowhere"}, "cannot read the key"),
        (RoomSource, {"insecure": "yes"}, "write wss://"),
        (RoomSource, {"ca_file": "/nowhere"}, "ca_file"),
    ],
)
def test_options_that_make_no_sense(end: Any, options: dict[str, Any], message: str):
    with pytest.raises(UsageError, match=message):
        end("ws://127.0.0.1:9/v1/room/talk", **options)


@pytest.mark.parametrize("address", ["ws://me:s3cr3t@127.0.0.1:9/v1/room/talk"])
def test_a_password_in_an_address_is_refused_and_not_shown(address: str):
    with pytest.raises(UsageError) as told:
        RoomSource(address)
    assert "s3cr3t" not in str(told.value)


def test_nobody_is_there(tmp_path: Path):
    (tmp_path / "key").write_text("s3cr3t\n")
    source = io.source("ws://127.0.0.1:9/v1/room/talk", key_file=str(tmp_path / "key"))

    async def main() -> None:
        try:
            await source.open()
        finally:
            await source.aclose()

    with pytest.raises(TransportError, match="is a server there") as told:
        asyncio.run(main())
    assert "s3cr3t" not in str(told.value)
