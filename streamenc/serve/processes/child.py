"""Child: a process that the supervisor starts, and starts again when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from streamenc.errors import StreamencError
from streamenc.graph.interrupt import how_ended
from streamenc.serve.keyring import VARIABLE

logger = logging.getLogger(__name__)

FIRST_DELAY_SECONDS, MOST_DELAY_SECONDS = 0.2, 30.0
LONG_SECONDS = 60.0  # who lived so long dies of something else than before
MOST_FAILURES = 5  # in a row, without having been up
LOOK_SECONDS = 0.1


class CannotStart(StreamencError):
    """A process ended before it was up: at first, or again and again.

    Attributes:
        code: Its exit code; negative for a signal.
    """

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} cannot be started: it {how_ended(code)}")
        self.code = code


class Child:
    """One process, by one name over all its lives.

    Args:
        feed: What it gets on standard input, which stays open for as long as the supervisor lives.
        descriptors: That it inherits.
        path: Of a socket: the process is up once something listens there; None where it says so
            with its first line on standard output.
        heard: Called with each line of its standard output, and with b"" when it has died.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        feed: bytes = b"",
        descriptors: Sequence[int] = (),
        path: str | None = None,
        heard: Callable[[bytes], None] = lambda line: None,
    ) -> None:
        self.name, self._command, self._feed = name, list(command), feed
        self._descriptors, self._path, self._heard = tuple(descriptors), path, heard
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False
        self.up = asyncio.Event()
        self.starts = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def keep(self, say: Callable[[str], None]) -> None:
        """Starts it whenever it is not there, until it is told to end.

        Raises:
            CannotStart: Where it ends before it is up.
        """
        loop = asyncio.get_running_loop()
        delay, failures, ever_up = FIRST_DELAY_SECONDS, 0, False
        while not self._ending:
            began = loop.time()
            code = await self._live()
            logger.info("%s %s, after %.1f s", self.name, how_ended(code), loop.time() - began)
            if self._ending:
                return
            was_up, ever_up = self.up.is_set(), ever_up or self.up.is_set()
            self.up.clear()
            self._heard(b"")
            failures = 0 if was_up else failures + 1
            if not ever_up or failures >= MOST_FAILURES:
                raise CannotStart(self.name, code)
            if was_up and loop.time() - began > LONG_SECONDS:
                delay = FIRST_DELAY_SECONDS
            say(f"{self.name} {how_ended(code)}; it is started again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(2 * delay, MOST_DELAY_SECONDS)

    async def _live(self) -> int:
        """One life, from its start to its end; gives its exit code."""
        self.starts += 1
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        self._process = process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            pass_fds=self._descriptors,
            # Ctrl-C is for the supervisor, which then tells its children.
            process_group=0,
        )
        assert process.stdin is not None
        if self._ending:
            process.kill()
        listening = asyncio.create_task(self._listen(process))
        try:
            with suppress(ConnectionError):  # it died, which its exit code tells
                process.stdin.write(self._feed)
                await process.stdin.drain()
            return await process.wait()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            process.stdin.close()

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while self._path is not None and not self.up.is_set():
            if _listens(self._path):
                self.up.set()
            else:
                await asyncio.sleep(LOOK_SECONDS)
        while line := await process.stdout.readline():
            self.up.set()
            self._heard(line)

    def tell_to_end(self) -> None:
        """It is not started again."""
        self._ending = True
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """At once, for good."""
        self._ending = True
        self._signal(signal.SIGKILL)

    async def gone(self) -> None:
        """Waits until it has ended, where it has begun."""
        if self._process is not None:
            await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self.alive:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return True
