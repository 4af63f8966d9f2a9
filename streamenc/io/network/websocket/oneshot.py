"""A whole stream in one call, for programs without asyncio."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from streamenc.errors import UsageError
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
    if isinstance(samples, np.ndarray) and samples.dtype == np.float32 and "format" not in options:
        options["format"] = "f32"
    return _run(address, samples, options)


def decode(address: str, codes: np.ndarray[Any, Any], **options: Any) -> np.ndarray[Any, Any]:
    """The sound of codes (codebooks, frames), as float32 (channels, samples). Raises as encode."""
    return _run(address, codes, {**options, "direction": "decode"})


def _run(address: str, given: Samples, options: dict[str, Any]) -> np.ndarray[Any, Any]:
    if options.get("direction") == "echo":
        raise UsageError("an echo gives codes and sound: iterate over streamenc.client.connect")
    return asyncio.run(_whole(address, given, options))


async def _whole(address: str, given: Samples, options: dict[str, Any]) -> np.ndarray[Any, Any]:
    async with connect(address, **options) as stream:
        sending = asyncio.create_task(_send(stream, given))
        try:
            pieces = [piece.data async for piece in stream]
            await sending
        finally:
            sending.cancel()
            await asyncio.wait({sending})
        if not pieces:
            return np.zeros((0, 0), np.float32)
        return np.concatenate(pieces, axis=1)


async def _send(stream: ClientStream, given: Samples) -> None:
    if isinstance(given, np.ndarray) and given.ndim > 1 and given.dtype.kind != "U":
        for at in range(0, given.shape[1], STEP):
            await stream.send(given[:, at : at + STEP])
    else:
        await stream.send(given)
    await stream.close()
