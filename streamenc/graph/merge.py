"""The order in which a merge takes frames from its inputs. No asyncio here: time is an argument."""

from __future__ import annotations

from collections.abc import Sequence

from streamenc.graph.frames import Frame, StreamInfo


class MergeOrder:
    """Picks the input whose next frame is presented first; never waits longer than a bound.

    While another input could still deliver an earlier frame, the merge waits for it, for at most
    `max_wait_ns`, and as long as an item of codes or features lasts, which cannot be there before
    its time has passed. An input that stayed silent that long is not waited for again until it
    delivers; what it then delivers may be earlier than what went out already. Nothing is dropped or
    flagged.

    infos  One per input.
    info   What comes out: a mux, its tracks counted like the inputs.

    Raises FitError where an input is itself a mux.
    """

    def __init__(self, infos: Sequence[StreamInfo], max_wait_ns: int) -> None:
        self.info = StreamInfo.mux(infos)
        self._scales = [int(info.time_base / self.info.time_base) for info in infos]
        self._max_wait_ns = [
            max_wait_ns
            + (0 if info.kind in ("audio", "video") or info.segmented else int(10**9 / info.rate))
            for info in infos
        ]
        self._missed_since_ns: list[int | None] = [None] * len(infos)
        self._silent = [False] * len(infos)

    def pick(
        self,
        heads: Sequence[Frame | None],
        ended: Sequence[bool],
        now_ns: int,
        *,
        stuck: bool = False,
    ) -> tuple[int | None, int | None]:
        """(input, None): take its head now. (None, due): wait for a frame, or until `due`.

        (None, None): nothing to do until a frame comes. `heads` are the next frames of the inputs,
        None where none is there; `ended` says that none will come; `stuck`, that none can come
        until one of these is taken.
        """
        for i, head in enumerate(heads):
            if head is not None:
                self._silent[i] = False
                self._missed_since_ns[i] = None
        ready = [(h.pts * self._scales[i], i) for i, h in enumerate(heads) if h is not None]
        if not ready:
            self._missed_since_ns = [None] * len(heads)
            return None, None
        if stuck:
            return min(ready)[1], None
        due_ns: int | None = None
        for i, head in enumerate(heads):
            if head is not None or ended[i] or self._silent[i]:
                continue
            since_ns = self._missed_since_ns[i]
            if since_ns is None:
                since_ns = self._missed_since_ns[i] = now_ns
            if now_ns - since_ns >= self._max_wait_ns[i]:
                self._silent[i] = True
            else:
                due_ns = max(due_ns or 0, since_ns + self._max_wait_ns[i])
        return (min(ready)[1], None) if due_ns is None else (None, due_ns)
