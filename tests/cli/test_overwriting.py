"""No command replaces a file unless --overwrite is given, whatever stands in the file's name."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from streamenc import io
from streamenc.cli import common
from streamenc.errors import FitError, OutputError, UsageError
from streamenc.graph.frames import StreamInfo
from tests.support.media import write_wav
from tests.support.program import Done

Call = Callable[..., Done]
OLD = b"the only copy of somebody's thesis"
ENDINGS = sorted(key for key in io.SINKS if key.startswith("."))
TICK = Fraction(1, 24_000)
AUDIO = StreamInfo("audio", TICK, Fraction(24_000), (1, None), "float32")
INFOS = {
    ".ecdc": StreamInfo(
        "codes", TICK, Fraction(75), (8, None), "uint16", "facebook/encodec_24khz", 1024
    ),
    **dict.fromkeys(
        (".mp4", ".mov", ".mkv", ".webm"),
        StreamInfo("video", TICK, Fraction(25), (3, None, 16, 16), "uint8"),
    ),
}


def opened(target: str, ending: str) -> None:
    """Opens a sink that may replace nothing, with a stream that it takes."""
    sink = io.sink(target, overwrite=False)
    assert io.output_file(target) is not None
    sink.open_blocking(INFOS.get(ending, AUDIO))  # type: ignore[attr-defined]
    sink.close_blocking()  # type: ignore[attr-defined]


def named(ending: str) -> list[str]:
    """Names that look like something else: with a scheme, a query, a pattern, a number's place."""
    return [
        f"plain{ending}",
        f"./2025-01-01T10:00{ending}",
        f"2025-01-01T10:00{ending}",
        f"what?{ending}",
        f"a?overwrite=yes&b={ending}",
        f"%04d{ending}",
        f"[0-9]*{ending}",
        f"-{ending}",
        f"C:\\clips\\x{ending}",
    ]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_kept_whatever_its_name(place: Path, ending: str) -> None:
    for name in named(ending):
        Path(name).write_bytes(OLD)
        with pytest.raises(UsageError, match="--overwrite|unknown scheme"):
            common.check_outputs([name], False)
        for target in (name, f"{name}?overwrite=yes", f"pcm:{name}", f"file:{name}"):
            # Also where it is there only after all was checked.
            with contextlib.suppress(OutputError, UsageError, FitError):
                opened(target, ending)
        assert Path(name).read_bytes() == OLD
    # Nothing else is there but files that other names meant.
    assert all(path.read_bytes() == OLD for path in place.iterdir() if path.name in named(ending))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["link", "dangling", "hard", "folder"])
def test_links_are_not_written_through(place: Path, ending: str, kind: str) -> None:
    old, name = place / "old", f"x{ending}"
    old.write_bytes(OLD)
    if kind == "folder":
        Path(name).mkdir()
    elif kind == "hard":
        os.link(old, name)
    else:
        Path(name).symlink_to(old if kind == "link" else place / "nothing")
    if kind != "folder":
        with pytest.raises(UsageError, match="--overwrite"):
            common.check_outputs([name], False)
    with pytest.raises(OutputError):
        opened(name, ending)
    assert old.read_bytes() == OLD
    assert sorted(path.name for path in place.iterdir()) == sorted(["old", name])


def clip(folder: Path) -> Path:
    return write_wav(folder / "in.wav", np.zeros((1, 1600)), 16_000)


WAYS: dict[str, list[str]] = {
    "encode": ["encode", "in.wav", "OUT.arrows", "-m", "mel"],
    "encode, beside": ["encode", "in.wav", "null:", "OUT.arrows", "-m", "mel"],
    "encode, samples": ["encode", "in.wav", "pcm:OUT.bin", "-m", "mel"],
    "encode --stats": ["encode", "in.wav", "null:", "-m", "mel", "--stats", "OUT.json"],
    "decode": ["decode", "none.arrows", "OUT.wav"],
    "decode --stats": ["decode", "none.arrows", "null:", "--stats", "OUT.json"],
    "listen": ["listen", "zmq+tcp://127.0.0.1:9", "OUT.jsonl"],
    "listen --stats": ["listen", "zmq+tcp://127.0.0.1:9", "null:", "--stats", "OUT.json"],
    "run": ["run", "p.toml"],
    "run --stats": ["run", "q.toml", "--stats", "OUT.json"],
    "export": ["export", "nano", "OUT.onnx"],
    "inspect --png": ["inspect", "in.wav", "--png", "OUT.png"],
    "tokenize --stats": ["tokenize", ".", "set", "-m", "mel", "--stats", "OUT.json"],
    "verify --json": ["verify", "mel", "--json", "OUT.json"],
}


@pytest.mark.parametrize("name", ["x", "10:00", "what?now", "%04d"])
@pytest.mark.parametrize("way", WAYS)
def test_every_output_of_every_command(place: Path, call: Call, way: str, name: str) -> None:
    clip(place)
    arguments = [word.replace("OUT", f"./{name}") for word in WAYS[way]]
    for file, sink in (("p.toml", f"./{name}.arrows"), ("q.toml", "null:")):
        Path(file).write_text(
            "[nodes.in]\nsource = 'in.wav'\n"
            f"[nodes.out]\nsink = '{sink}'\nafter = 'in'\noptions = {{}}\n"
        )
    (target,) = [word for word in [*arguments, f"./{name}.arrows"] if f"./{name}" in word][:1]
    path = Path(target.removeprefix("pcm:"))
    path.write_bytes(OLD)
    done = call(*arguments)
    queried = target.startswith("pcm:") and "?" in name  # what follows is of its options
    assert done.code == 2 and (queried or "--overwrite" in done.error), done.error
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("target", ["out.arrows", "pcm:out.bin", "out.npz", "out.jsonl"])
def test_what_comes_after_the_check_is_kept_too(place: Path, call: Call, target: str) -> None:
    clip(place)
    path = Path(target.removeprefix("pcm:"))
    path.write_bytes(OLD)
    toml = f"[nodes.in]\nsource = 'in.wav'\n[nodes.out]\nsink = '{target}'\nafter = 'in'\n"
    Path("p.toml").write_text(toml + "options = {overwrite = true}\n")
    with mock.patch("streamenc.cli.streaming.check_outputs"):
        done = call("run", "p.toml", "-q")
        assert done.code == 1 and "exists already" in done.error, done.error
        assert path.read_bytes() == OLD
        assert call("run", "p.toml", "-q", "--overwrite").code == 0
    assert path.read_bytes() != OLD
    assert sorted(each.name for each in place.iterdir()) == sorted(["in.wav", "p.toml", path.name])


def test_the_input_is_no_output_even_to_overwrite(place: Path, call: Call) -> None:
    sound = clip(place)
    before = sound.read_bytes()
    os.link(sound, "same.wav")
    Path("p.toml").write_text(
        "[nodes.in]\nsource = 'in.wav'\n[nodes.out]\nsink = './same.wav'\nafter = 'in'\n"
    )
    for arguments in (
        ("run", "p.toml", "-y"),
        ("encode", "in.wav", "null:", "-m", "mel", "-y", "--stats", "./same.wav"),
        ("encode", "file:in.wav", "pcm:same.wav", "-y"),
        ("inspect", "in.wav", "--png", "same.wav", "-y"),
    ):
        done = call(*arguments)
        assert done.code == 2 and "is the input" in done.error, done.error
    assert sound.read_bytes() == before
    done = call("encode", "in.wav", "a.jsonl", "./a.jsonl", "-m", "mel")
    assert done.code == 2 and "named twice" in done.error


def test_pipes_and_devices_are_written(place: Path, call: Call) -> None:
    clip(place)
    os.mkfifo("pipe.jsonl")
    reader = os.open("pipe.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    try:
        done = call("encode", "in.wav", "pipe.jsonl", "-m", "mel", "-q", "--stats", "/dev/null")
        assert (done.code, done.error) == (0, "")
        assert os.read(reader, 16).startswith(b'{"info"')
    finally:
        os.close(reader)
