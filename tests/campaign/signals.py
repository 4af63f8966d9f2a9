"""Ctrl-C at any moment: of what starts, what runs and what ends; once, twice, and SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from streamenc.errors import StreamencError
from streamenc.io.reading import read_file

CLIP = Path(__file__).parents[2] / "examples" / "data" / "speech.flac"
# Frames of a traceback that are of Python's own start, before a line of ours has run.
OURS = re.compile(r'File "[^"]*/streamenc/')
PATIENCE_SECONDS = 60.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """A command, and when it is told to end.

    Attributes:
        arguments: Of `streamenc`, of a folder of its own.
        outputs: What it writes there.
        begun: Whether it runs; None where any moment of its start will do.
        codes: How it may end.
        seconds: How long it may take to.
        signals: What it is sent, one right after the other.
    """

    name: str
    arguments: Callable[[Path], list[str]]
    outputs: tuple[str, ...] = ()
    begun: Callable[[Path], bool] | None = None
    codes: tuple[int, ...] = (0,)
    seconds: float = 2.0
    signals: tuple[signal.Signals, ...] = (signal.SIGINT,)


def _encode(folder: Path) -> list[str]:
    outputs = (str(folder / "a.arrows"), str(folder / "b.arrows"))
    return ["encode", str(CLIP), *outputs, "--realtime", "-m", "mel"]


def _written(name: str, least: int = 2000) -> Callable[[Path], bool]:
    return lambda folder: (folder / name).exists() and (folder / name).stat().st_size > least


def _tokens(folder: Path) -> str:
    tokens = folder / "tokens.arrows"
    if not tokens.exists():
        _started(["encode", str(CLIP), str(tokens), "-q"]).communicate(timeout=PATIENCE_SECONDS)
    return str(tokens)


def _decode(folder: Path) -> list[str]:
    return ["decode", _tokens(folder), str(folder / "x.wav"), "--realtime"]


def _publish(folder: Path) -> list[str]:
    return ["encode", str(CLIP), f"zmq+ipc://{folder}/out?mode=credit", "--realtime", "-m", "mel"]


def _tokenize(folder: Path) -> list[str]:
    data = folder / "data"
    data.mkdir()
    for number in range(40):
        (data / f"{number}.flac").symlink_to(CLIP)
    return ["tokenize", str(data), str(folder / "set"), "-m", "nano"]


def _serve(folder: Path) -> list[str]:
    return ["serve", "-m", "mel", "--bind", "127.0.0.1:0"]


STARTS = (0, 130)
TWICE = (signal.SIGINT, signal.SIGINT)
SCENES = (
    Scene("--version", lambda folder: ["--version"], codes=STARTS),
    Scene("encode, at its start", _encode, ("a.arrows", "b.arrows"), codes=STARTS, seconds=4),
    Scene("encode", _encode, ("a.arrows", "b.arrows"), _written("a.arrows")),
    Scene("encode, twice", _encode, ("a.arrows", "b.arrows"), _written("a.arrows"), signals=TWICE),
    Scene(
        "encode, SIGTERM", _encode, ("a.arrows", "b.arrows"), _written("a.arrows"),
        signals=(signal.SIGTERM,),
    ),
    Scene("decode", _decode, ("x.wav",), _written("x.wav")),
    # What has been encoded waits for a subscriber for as long as a drain lasts.
    Scene(
        "publish to nobody", _publish, begun=lambda folder: (folder / "out").exists(), codes=STARTS,
        seconds=7,
    ),
    Scene("listen to nobody", lambda folder: ["listen", f"zmq+ipc://{folder}/out"], codes=STARTS),
    Scene(
        "tokenize", _tokenize, begun=lambda folder: (folder / "set").exists(), codes=STARTS,
        seconds=10,
    ),
    Scene("serve, at its start", _serve, codes=STARTS, seconds=10),
    Scene(
        "engine", lambda folder: ["engine", "-m", "mel", f"ipc://{folder}/engine"],
        begun=lambda folder: (folder / "engine").exists(), codes=STARTS, seconds=10,
    ),
)  # fmt: skip


def run(count: int, seed: int) -> list[Row]:
    """A row of each of `count` processes: command, signal, moment_s, code, seconds, readable,
    traceback, and the faults in words."""
    rng = Random(seed)
    return [one(SCENES[number % len(SCENES)], rng) for number in range(count)]


def one(scene: Scene, rng: Random) -> Row:
    """A process of that scene, told to end at a moment by chance."""
    with tempfile.TemporaryDirectory(prefix="sig") as where:
        folder = Path(where)
        process = _started(scene.arguments(folder))
        born = time.monotonic()
        try:
            if scene.begun is not None:
                while not scene.begun(folder) and process.poll() is None:
                    if time.monotonic() - born > PATIENCE_SECONDS:
                        break
                    time.sleep(0.01)
            time.sleep(rng.uniform(0.05, 1.0))
            moment, told = time.monotonic() - born, time.monotonic()
            for number in scene.signals:
                process.send_signal(number)
                time.sleep(0.003)
            errors = process.communicate(timeout=PATIENCE_SECONDS)[1]
        finally:
            process.kill()
            process.wait()
        took = time.monotonic() - told
        readable = all(_readable(folder / name) for name in scene.outputs)
    row: Row = {
        "command": scene.name,
        "signal": " ".join(number.name for number in scene.signals),
        "moment_s": round(moment, 3),
        "code": process.returncode,
        "seconds": round(took, 3),
        "readable": readable,
        "traceback": bool("Traceback" in errors and OURS.search(errors)),
    }
    # Python itself, before a line of ours, ends by the signal or with a traceback of its own.
    pythons = scene.begun is None and not OURS.search(errors) and process.returncode in (-2, 1, 130)
    faults = []
    if process.returncode not in scene.codes and not pythons:
        faults.append(f"ended with {process.returncode}: {errors[-500:]}")
    # Python itself takes a while to end, where others want its core.
    allowed = scene.seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    if took > allowed:
        faults.append(f"took {took:.1f} s to end, {allowed:.1f} allowed")
    if not readable:
        faults.append("left an output that cannot be read")
    if row["traceback"]:
        faults.append(f"left a traceback: {errors[-1500:]}")
    return {**row, "faults": faults}


def _readable(path: Path) -> bool:
    """Whether what a command wrote is whole, as far as it came; nothing at all is."""
    if not path.exists() or not path.stat().st_size:
        return True
    try:
        read_file(str(path))
    except StreamencError:
        return False
    return True


def _started(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "streamenc", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
