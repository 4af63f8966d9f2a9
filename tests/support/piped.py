"""Standard input as a pipe, for sources in this process; and WAV files made byte by byte."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np


@contextmanager
def standard_input(*pieces: bytes, pause_seconds: float = 0.0, hold: bool = False) -> Iterator[int]:
    """`pieces` come on standard input, one after the other; the end of the pipe that writes.

    hold  Leaves it open behind them, for the caller to close.
    """
    reader, writer = os.pipe()

    def write() -> None:
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(writer, rest) :]
                time.sleep(pause_seconds)
        except BrokenPipeError:
            pass
        if not hold:
            os.close(writer)

    thread = threading.Thread(target=write, daemon=True)
    with os.fdopen(reader, "rb") as stdin, mock.patch("sys.stdin", stdin):
        thread.start()
        yield writer
    thread.join(10)


def chunk(order: str, name: bytes, body: bytes, size: int | None = None) -> bytes:
    """A chunk of RIFF; `size` is what it claims."""
    length = len(body) if size is None else size
    return name + struct.pack(order + "I", length) + body + bytes(len(body) % 2)


def wave_bytes(
    data: bytes,
    *,
    bits: int = 16,
    size: int = 2,
    rate: int = 16_000,
    channels: int = 1,
    tag: int = 1,
    valid: int | None = None,
    order: str = "<",
    claimed: int | None = None,
    before: Sequence[bytes] = (),
) -> bytes:
    """A WAV, or a RIFX where `order` is ">".

    size     Bytes of a sample.
    valid    Makes it WAVE_FORMAT_EXTENSIBLE with so many valid bits.
    claimed  What it says that its length is.
    before   Chunks before `fmt `.
    """
    extended = valid is not None
    fmt = struct.pack(
        order + "HHIIHH",
        0xFFFE if extended else tag,
        channels,
        rate,
        rate * size * channels,
        size * channels,
        8 * size if extended else bits,
    )
    if valid is not None:
        fmt += struct.pack(order + "HHIIHH", 22, valid, 0, tag, 0, 0x10)
        fmt += bytes.fromhex("800000aa00389b71")
    body = b"WAVE" + b"".join(before) + chunk(order, b"fmt ", fmt)
    body += chunk(order, b"data", data, claimed)
    return chunk(order, b"RIFF" if order == "<" else b"RIFX", body, claimed)


def integers(samples: np.ndarray[Any, Any], size: int, order: str = "<") -> bytes:
    """Whole numbers as `size` bytes each."""
    names: Any = {"<": "little", ">": "big"}
    return b"".join(int(s).to_bytes(size, names[order], signed=True) for s in samples)


def read_all(source: Any) -> np.ndarray[Any, Any]:
    """All samples of a source of sound, (channels, samples)."""
    try:
        source.open_blocking()
        return np.concatenate([frame.data for frame in iter(source.read, None)], axis=1)
    finally:
        source.close_blocking()


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path
