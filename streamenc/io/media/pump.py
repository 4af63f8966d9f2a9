"""Pump: reads items in a thread of its own, so that a read that blocks keeps nobody waiting."""

from __future__ import annotations

import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator

from streamenc.graph.frames import Frame, StreamInfo

Item = StreamInfo | Frame


class Pump:
    """Runs a generator in a thread: a read from a network or a device cannot be interrupted.

    The thread ends, and closes the generator, as soon as it can after `halt` is set: at the latest
    when the read that is under way returns.

    capacity     Frames of a track that are kept for a reader that is late. Then the thread waits.
    keep_newest  Says of a track that the thread does not wait but gives up its oldest frame. The
                 frame after it is flagged, and `lost` counts what was given up, both by the jump in
                 `Frame.seq`.
    """

    def __init__(
        self,
        items: Generator[Item, None, None],
        halt: threading.Event,
        capacity: int,
        keep_newest: Callable[[int], bool] = lambda track: False,
    ) -> None:
        self.lost = 0
        self._items = items
        self._halt = halt
        self._capacity = capacity
        self._keep_newest = keep_newest
        self._waiting: deque[Item] = deque()
        self._held: Counter[int] = Counter()  # frames that wait, by track
        self._end: list[Exception | None] = []
        self._change = threading.Condition()
        self._next_seqs: Counter[int] = Counter()  # by track
        self._thread = threading.Thread(target=self._run, name="streamenc-pump", daemon=True)
        self._thread.start()

    def get(self, timeout_seconds: float) -> Item | None:
        """The next item, None at the end. Raises queue.Empty, or once what the thread met."""
        with self._change:
            if not self._change.wait_for(lambda: self._waiting or self._end, timeout_seconds):
                raise queue.Empty
            if not self._waiting:
                error, self._end[0] = self._end[0], None
                if error is not None:
                    raise error
                return None
            item = self._waiting.popleft()
            if isinstance(item, Frame):
                self._held[item.track] -= 1
            self._change.notify_all()
        if isinstance(item, Frame) and self._keep_newest(item.track):
            jump = item.seq - self._next_seqs[item.track]
            self._next_seqs[item.track] = item.seq + 1
            if jump:
                self.lost += jump
                item = item.with_(discontinuity=True)
        return item

    def close(self) -> None:
        """Ends the thread, or leaves it to itself where it does not end within 0.5 s."""
        self._halt.set()
        self._thread.join(0.5)

    def _run(self) -> None:
        error: Exception | None = None
        try:
            for item in self._items:
                if not self._put(item):
                    break
        except Exception as met:  # raised again by `get`, in the reader's thread
            error = met
        finally:
            self._items.close()
            with self._change:
                self._end.append(error)
                self._change.notify_all()

    def _put(self, item: Item) -> bool:
        with self._change:
            if isinstance(item, Frame):
                while self._held[item.track] >= self._capacity and not self._halt.is_set():
                    if self._keep_newest(item.track):
                        self._give_up(item.track)
                    else:
                        self._change.wait(0.1)
                self._held[item.track] += 1
            self._waiting.append(item)
            self._change.notify_all()
        return not self._halt.is_set()

    def _give_up(self, track: int) -> None:
        """The oldest frame of a track."""
        for index, item in enumerate(self._waiting):
            if isinstance(item, Frame) and item.track == track:
                del self._waiting[index]
                self._held[track] -= 1
                return
