"""drive: frames through one node, without a graph."""

from __future__ import annotations

from collections.abc import Iterable

import anyio

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform, Transform


def drive(
    node: Transform | AsyncTransform, info: StreamInfo, frames: Iterable[Frame]
) -> list[Frame]:
    """Opens `node` for `info`, pushes `frames`, ends the stream, and closes the node, always.

    Returns:
        All frames that came out. Raises whatever the node raises. Where an event loop runs already,
        await `drive_async`.
    """

    async def run() -> list[Frame]:
        return (await drive_async(node, info, frames))[1]

    return anyio.run(run)


async def drive_async(
    node: Transform | AsyncTransform, info: StreamInfo, frames: Iterable[Frame]
) -> tuple[StreamInfo, list[Frame]]:
    """As `drive`; returns also what the node said about its output when it was opened."""
    passed: list[Frame] = []
    if isinstance(node, Transform):
        try:
            info = node.open(info)
            for frame in frames:
                passed += node.push(frame)
            passed += node.flush()
        finally:
            node.close()
    else:
        try:
            info = await node.open(info)
            for frame in frames:
                passed += await node.push(frame)
            passed += await node.flush()
        finally:
            await node.aclose()
    return info, passed
