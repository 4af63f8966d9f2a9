"""A PulseAudio server of a test's own, with one speaker whose sound is the microphone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NEEDED = ("pulseaudio", "pactl", "paplay", "parec")
MISSING = [name for name in NEEDED if shutil.which(name) is None]

ALSA_TO_PULSE = "pcm.!default { type pulse }\nctl.!default { type pulse }\n"


@dataclass(frozen=True)
class PulseServer:
    """`env` makes a child process use this server: PortAudio finds it as ALSA's default device."""

    env: dict[str, str]
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Like an unplugged device: gone without a word."""
        self.process.kill()
        self.process.wait()


@contextmanager
def pulse_server(folder: Path, rate: int = 48_000) -> Iterator[PulseServer]:
    """Runs a server in `folder` until the block ends.

    PortAudio lists the devices once, when it is loaded: use them in a child process with `env`.
    """
    home = folder / "home"
    home.mkdir(parents=True, mode=0o700)
    (home / ".asoundrc").write_text(ALSA_TO_PULSE)
    socket = folder / "socket"
    private = {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home),
        "PULSE_RUNTIME_PATH": str(home),
        "PULSE_STATE_PATH": str(home),
    }
    client = {
        "PULSE_SERVER": f"unix:{socket}",
        "PULSE_SINK": "cable",
        "PULSE_SOURCE": "cable.monitor",
    }
    command = [
        "pulseaudio", "-n", "--daemonize=no", "--exit-idle-time=-1", "--disable-shm=yes",
        "--use-pid-file=no", "--realtime=no", "--high-priority=no",
        "-L", f"module-native-protocol-unix auth-anonymous=1 socket={socket}",
        "-L", f"module-null-sink sink_name=cable rate={rate} channels=2",
    ]  # fmt: skip
    log_path = folder / "pulseaudio.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **private}, stdout=log, stderr=subprocess.STDOUT
        )
    server = PulseServer({**os.environ, **private, **client}, process)
    try:
        due = time.monotonic() + 30
        ask = ["pactl", "get-default-sink"]
        while subprocess.run(ask, env=server.env, capture_output=True).returncode != 0:
            if process.poll() is not None or time.monotonic() > due:
                raise RuntimeError(f"PulseAudio did not start: {log_path.read_text()}")
            time.sleep(0.1)
        yield server
    finally:
        server.kill()
