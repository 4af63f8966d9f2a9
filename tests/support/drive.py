"""Runs nodes one behind another without a graph, and makes the sound that goes in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import anyio
import numpy as np

from streamenc.graph.frames import Frame, StreamInfo
from streamenc.graph.node import AsyncTransform, Transform
from streamenc.testing import drive_async

Node = Transform | AsyncTransform


def audio_info(rate: int, channels: int = 1) -> StreamInfo:
    return StreamInfo("audio", Fraction(1, rate), Fraction(rate), (channels, None), "float32")


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    """(channels, samples)."""
    generator = np.random.default_rng(seed)
    return (0.3 * generator.standard_normal((channels, samples))).astype(np.float32)


def sound(data: np.ndarray[Any, Any], block: int, *, pts: int = 0, seq: int = 0) -> list[Frame]:
    """`data` (channels, samples) in frames of `block` samples, one tick each."""
    frames = []
    for start in range(0, data.shape[-1], block):
        piece = data[:, start : start + block]
        frames.append(Frame(piece, pts + start, piece.shape[-1], seq + len(frames)))
    return frames


def video_info(height: int, width: int, rate: int = 25, ticks: int = 1000) -> StreamInfo:
    return StreamInfo(
        "video", Fraction(1, ticks), Fraction(rate), (3, None, height, width), "uint8"
    )


def images(count: int, height: int, width: int, *, pts: int = 0, duration: int = 40) -> list[Frame]:
    """Moving stripes with a little noise, a frame each; as they lie in memory after decoding."""
    generator = np.random.default_rng(count)
    frames = []
    for index in range(count):
        x = np.arange(width) + np.arange(height)[:, None] + 5 * index
        wave = 128 + 90 * np.sin(x[..., None] / np.array([5.0, 7.0, 11.0]))
        pixels = (wave + generator.normal(0, 4, wave.shape)).clip(0, 255).astype(np.uint8)
        data = pixels.transpose(2, 0, 1)[:, None]
        frames.append(Frame(data, pts + index * duration, duration, index))
    return frames


def flagged(frames: Sequence[Frame]) -> list[Frame]:
    """The same, the first with a discontinuity."""
    return [frames[0].with_(discontinuity=True), *frames[1:]]


def joined(frames: Sequence[Frame]) -> np.ndarray[Any, Any]:
    return np.concatenate([frame.data for frame in frames], axis=-1)


async def opened(info: StreamInfo, *nodes: Node) -> StreamInfo:
    """Opens `nodes`; returns what leaves the last."""
    for node in nodes:
        info = node.open(info) if isinstance(node, Transform) else await node.open(info)
    return info


async def pushed(frames: Iterable[Frame], *nodes: Node, flush: bool = True) -> list[Frame]:
    """What comes out of the last of `nodes`, which are open, with the stream's end unless told."""
    passing = list(frames)
    for node in nodes:
        out: list[Frame] = []
        for frame in passing:
            out += node.push(frame) if isinstance(node, Transform) else await node.push(frame)
        if flush:
            out += node.flush() if isinstance(node, Transform) else await node.flush()
        passing = out
    return passing


def through(
    info: StreamInfo, frames: Iterable[Frame], *nodes: Node
) -> tuple[StreamInfo, list[Frame]]:
    """Runs `frames` and the end through `nodes`, one after the other."""

    async def run() -> tuple[StreamInfo, list[Frame]]:
        passing = info, list(frames)
        for node in nodes:
            passing = await drive_async(node, *passing)
        return passing

    return anyio.run(run)
