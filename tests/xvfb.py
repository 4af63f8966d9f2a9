"""An X server without a screen, for tests: pixels in memory that are captured like any others."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MISSING = "" if shutil.which("Xvfb") else "not installed: Xvfb (apt install xvfb)"


@dataclass
class Display:
    """name: as DISPLAY has it, e.g. ":101"."""

    name: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def display(size: str = "320x240") -> Iterator[Display]:
    """Starts one of `size`; the server chooses a number that is free."""
    reader, writer = os.pipe()
    try:
        process = subprocess.Popen(
            ["Xvfb", "-displayfd", str(writer), "-screen", "0", f"{size}x24", "-nolisten", "tcp"],
            pass_fds=[writer],
            stderr=subprocess.DEVNULL,
        )
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
