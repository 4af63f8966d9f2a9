"""An MQTT broker, mosquitto, which a test starts, stops and starts again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

MOSQUITTO = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


class Broker:
    """mosquitto on a port of its own."""

    def __init__(
        self,
        folder: Path,
        config: str = "allow_anonymous true",
        host: str = "127.0.0.1",
        persistent: bool = False,
    ) -> None:
        with socket.socket() as free:
            free.bind((host, 0))
            self.port = free.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        # "user" keeps it from giving up the right to read the test's files, where root runs it.
        keeps = f"persistence true\npersistence_location {folder}/" if persistent else ""
        self._config.write_text(f"user root\n{keeps}\nlistener {self.port} {host}\n{config}\n")
        self._host = host
        self.process: subprocess.Popen | None = None

    def url(self, rest: str = "speech", scheme: str = "mqtt", user: str = "") -> str:
        return f"{scheme}://{user}{self._host}:{self.port}/{rest}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(MOSQUITTO), "-c", self._config],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection((self._host, self.port), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline and self.process.poll() is None, "no broker"
                time.sleep(0.02)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """In an orderly way: a persistent one writes down what it has."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()
            self.process = None
