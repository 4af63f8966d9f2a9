"""Stage: a folder in which the manual's commands and snippets run, and what they are plugged to."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from tests.support.manual.files import make_files
from tests.support.manual.models import save_models
from tests.support.manual.pages import DOCS, blocks
from tests.support.manual.shell import Done, other_program, outputs, published, run_streamenc

# What a page takes as given, as the command that makes it.
GIVEN = {
    "tokens.arrows": "encode talk.flac tokens.arrows -n 12",
    "tokens.parquet": "encode talk.flac tokens.parquet -n 12",
    "tokens.npz": "encode talk.flac tokens.npz -n 12",
    "clip.arrows": "encode clip.mp4 clip.arrows -m ./Cosmos-0.1-Tokenizer-DV8x16x16 "
    "--set mode=window",
    "film.arrows": "encode film.mp4 film.arrows -m nano "
    "--video ./Cosmos-0.1-Tokenizer-DV8x16x16 --video-set mode=window",
    "vectors.arrows": "encode talk.jsonl vectors.arrows -m sentence-transformers/all-MiniLM-L6-v2",
    "tokens/": "tokenize talks/ tokens/ -m nano --workers 0",
}
# What the manual says, and what stands for it here.
STANDS_FOR = {
    "{000..999}": "{000..001}",
    "s3://bucket/speech/": "talks/",
    "--shard 3/16": "--shard 1/2",
    "rtsp://camera/stream": "clip.mp4",
    "--size 640x352": "--size 64x48",
    "--size 256x256": "--size 64x64",
}
LISTENS = re.compile(r"streamenc listen ((?:zmq\+tcp|ws):\S+)")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Stage:
    """A folder with all that is read, made anew for each block.

    broker  The address that stands for mqtt://localhost.
    served  host:port of a server of streams.
    """

    def __init__(self, place: Path, kept: Path, broker: str = "", served: str = "") -> None:
        self.place, self._kept = place, kept
        self._port = free_port()
        self._broker, self._served = broker, served
        if not (kept / "files").exists():
            (kept / "files").mkdir(parents=True)
            make_files(kept / "files")
        shutil.copytree(kept / "files", place, dirs_exist_ok=True)
        live = place / "live.toml"
        live.write_text(self.said(live.read_text()))

    def said(self, text: str) -> str:
        """What the manual says, with addresses and sizes of here."""
        for there, here in STANDS_FOR.items():
            text = text.replace(there, here)
        text = text.replace("/run/user/1000/engine", f"{self.place}/engine")
        text = text.replace("127.0.0.1:5555", f"127.0.0.1:{self._port}")
        text = text.replace("mqtt://localhost/", f"{self._broker}/")
        return text.replace("127.0.0.1:8765", self._served or "127.0.0.1:8765")

    def provide(self, text: str, *, without: tuple[str, ...] = ()) -> None:
        """Whatever a text names and nobody made so far."""
        save_models(text, self.place, self._kept)
        if "both.toml" in text:
            (self.place / "both.toml").write_text(blocks(DOCS / "gallery.md", "toml")[0])
        for name, command in GIVEN.items():
            if name not in text or name in without or (self.place / name).exists():
                continue
            save_models(command, self.place, self._kept)
            made = self._kept / "given" / name
            if not made.exists():
                made.parent.mkdir(exist_ok=True)
                done = run_streamenc([*shlex.split(command), "--quiet"])
                assert done.code == 0, done.error
                shutil.move(self.place / name, made)
            if made.is_dir():
                shutil.copytree(made, self.place / name)
            else:
                shutil.copy(made, self.place / name)

    def run(self, line: str, check: Callable[[list[str], Done], None]) -> None:
        """A line: its programs, each given what the one before it said."""
        line = self.said(line)
        given: bytes | None = None
        for part in re.split(r"(?<!\S)\|(?!\S)", line):
            if part.startswith("streamenc listen ws:"):
                # The room of who sent before may wait for it to come back.
                part = part.replace("/v1/room/talk", "/v1/room/another")
            words = shlex.split(part)
            if words[0] != "streamenc":
                given = other_program(words, given)
                continue
            words = words[1:]
            if words[:1] == ["tokenize"]:
                words += ["--workers", "0"]
            made = outputs(words)
            self.provide(part, without=tuple(made))
            for name in made:
                _remove(self.place / name)
            listens = LISTENS.search(part)
            if listens:
                self.provide("tokens.arrows")
            recording = self.place / "tokens.arrows"
            with published(listens[1], recording) if listens else nullcontext():
                done = run_streamenc(words, given)
            check(words, done)
            for name in made:
                assert (self.place / name).exists(), f"{part} made no {name}"
            given = done.out


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
