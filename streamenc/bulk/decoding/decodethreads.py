"""DecodeThreads: items read by some threads, while others' sound is encoded."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue

from streamenc.bulk.decoding.decoders import Answer, Broken, Decoders, Given, OpenItem
from streamenc.bulk.decoding.preparing import Preparing
from streamenc.bulk.items import Item
from streamenc.errors import StreamencError


class DecodeThreads(Decoders):
    """Decodes in threads of this process: FFmpeg and the resampler let others run meanwhile.

    An item is read by one of them at a time, and no further than was asked for.

    Args:
        count: How many threads.
    """

    def __init__(self, preparing: Preparing, count: int) -> None:
        self._preparing = preparing
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="streamenc-decode")
        self._open: dict[int, OpenItem] = {}
        self._came: SimpleQueue[Answer | BaseException] = SimpleQueue()
        self._asked: set[int] = set()
        self._closing: dict[int, OpenItem] = {}  # once what was asked for has come

    def start(self, ticket: int, item: Item) -> None:
        self._open[ticket] = OpenItem(self._preparing, item)
        self.ask(ticket)

    def ask(self, ticket: int) -> None:
        self._asked.add(ticket)
        self._threads.submit(self._read, ticket, self._open[ticket])

    def drop(self, ticket: int) -> None:
        item = self._open.pop(ticket)
        if ticket in self._asked:
            self._closing[ticket] = item
        else:
            item.close()

    def answers(self, wait: bool) -> list[Answer]:
        found: list[Answer] = []
        while self._asked:
            try:
                came = self._came.get(block=wait and not found)
            except Empty:
                break
            if isinstance(came, BaseException):
                raise came  # of our own: an item's are answers
            self._asked.discard(came.ticket)
            if came.ticket in self._closing:
                self._closing.pop(came.ticket).close()
                continue
            if isinstance(came, Broken) or (isinstance(came, Given) and came.whole is not None):
                self._open.pop(came.ticket).close()
            found.append(came)
        return found

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for opened in (self._open, self._closing):
            while opened:
                opened.popitem()[1].close()
        self._asked.clear()

    def _read(self, ticket: int, item: OpenItem) -> None:
        self._came.put(_answered(lambda: Given(ticket, *item.more()), ticket))


def _answered(read: Callable[[], Given], ticket: int) -> Answer | BaseException:
    try:
        return read()
    except StreamencError as error:
        return Broken(ticket, str(error), type(error).__name__)
    except BaseException as error:  # it belongs to whoever waits
        return error
