"""An X server without a screen, for tests: pixels in memory that are captured like any others."""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MISSING = "" if shutil.which("Xvfb") else "not installed: Xvfb (apt install xvfb)"
NO_RESIZE = (
    "" if shutil.which("xrandr") else "not installed: xrandr (apt install x11-xserver-utils)"
)


@dataclass
class Display:
    """name: as DISPLAY has it, e.g. ":101"."""

    name: str
    process: subprocess.Popen[bytes]

    def fill(self, x: int, y: int, width: int, height: int, rgb: int) -> None:
        """Paints a part of the background, by the protocol's own words: no X library is needed."""
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(f"/tmp/.X11-unix/X{self.name[1:]}")
            server.sendall(struct.pack("<BxHHHHxx", ord("l"), 11, 0, 0, 0))
            answer = server.makefile("rb")
            accepted, units = struct.unpack("<BxxxxxH", answer.read(8))
            assert accepted == 1
            setup = answer.read(4 * units)
            new_id, vendor, formats = (
                struct.unpack_from("<I", setup, 4)[0],
                struct.unpack_from("<H", setup, 16)[0],
                setup[21],
            )
            root = struct.unpack_from("<I", setup, 32 + -(-vendor // 4) * 4 + 8 * formats)[0]
            server.sendall(
                struct.pack("<BxHIIII", 55, 5, new_id, root, 4, rgb)  # CreateGC, foreground
                + struct.pack("<BxHIIhhHH", 70, 5, root, new_id, x, y, width, height)  # fill
                + struct.pack("<BxH", 43, 1)  # GetInputFocus: its reply says that all is done
            )
            assert answer.read(32)[0] == 1
            answer.close()

    def resize(self, width: int, height: int) -> None:
        """As when a user changes the resolution; not above that of the beginning."""
        # It complains of the output's mode, which Xvfb cannot change, when the screen has changed.
        subprocess.run(
            ["xrandr", "-d", self.name, "--fb", f"{width}x{height}"], stderr=subprocess.DEVNULL
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def display(size: str = "320x240") -> Iterator[Display]:
    """Starts one of `size`; the server chooses a number that is free."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            [
                "Xvfb", "-displayfd", str(writer), "-screen", "0", f"{size}x24", "-nolisten", "tcp",
                "-noreset",  # else it starts anew, deaf for a moment, when its last client leaves
            ],
            pass_fds=[writer],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        os.close(writer)
    try:
        with os.fdopen(reader) as told:
            number = told.readline().strip()
        assert number, "Xvfb ended at once"
        yield Display(f":{number}", process)
    finally:
        process.terminate()
        process.wait(10)
