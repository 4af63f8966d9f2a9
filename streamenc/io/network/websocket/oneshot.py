"""A whole stream in one call, for programs without asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from streamenc.errors import UsageError
from streamenc.graph.graph import check_no_event_loop
from streamenc.io.network.packetsource import end_task
from streamenc.io.network.websocket.clientinput import Samples
from streamenc.io.network.websocket.connecting import connect
from streamenc.io.network.websocket.liveclient import ClientStream

# Items along time that are sent at once, of arrays.
STEP = 16_384


def encode(address: str, samples: Samples, **options: Any) -> np.ndarray[Any, Any]:
    """What a model makes of all of it, such as codes (codebooks, frames).

    Args:
        address: See connect.
        samples: See ClientStream.send; int16 or float32 where the model takes sound.
        options: Those of connect: `model`, `rate`, `codebooks`, ...

    Raises:
        UsageError, InputError, TransportError: As connect, and ClientStream.send.
    """
    return _run(address, samples, options)


def decode(address: str, codes: np.ndarray[Any, Any], **options: Any) -> np.ndarray[Any, Any]:
    """The sound of codes (codebooks, frames), as float32 (channels, samples). Raises as encode."""
    return _run(address, codes, {**options, "direction": "decode"})


def _run(address: str, given: Samples, options: dict[str, Any]) -> np.ndarray[Any, Any]:
    if options.get("direction") == "echo":
        raise UsageError("an echo gives codes and sound: iterate over streamenc.client.connect")
    check_no_event_loop(
        "streamenc.client.encode, or decode,", "`async with streamenc.client.connect(...)`"
    )
    return asyncio.run(_whole(address, given, options))


async def _whole(address: str, given: Samples, options: dict[str, Any]) -> np.ndarray[Any, Any]:
    async with connect(address, **options) as stream:
        sending = asyncio.create_task(_send(stream, given))
        reading = asyncio.create_task(_read(stream))
        try:
            await asyncio.wait({sending, reading}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (sending, reading):
                if task.done():
                    task.result()  # raises what went wrong
            pieces = reading.result()
        finally:
            for task in (sending, reading):
                await end_task(task)
        return np.concatenate(pieces, axis=1) if pieces else np.zeros((0, 0), np.float32)


async def _read(stream: ClientStream) -> list[np.ndarray[Any, Any]]:
    return [piece.data async for piece in stream]


async def _send(stream: ClientStream, given: Samples) -> None:
    if isinstance(given, np.ndarray) and given.ndim > 1 and given.dtype.kind != "U":
        for at in range(0, given.shape[1], STEP):
            await stream.send(given[:, at : at + STEP])
    else:
        await stream.send(given)
    await stream.close()
