"""SpeechTeller: the detector of speech in the sound of one stream, which may be on or off."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from fractions import Fraction

import numpy as np
from msgspec import structs

from streamenc.errors import InputError, SnapshotError
from streamenc.io.network.websocket.livemessages import Vad
from streamenc.nodes.speech.speechwatch import SpeechTold, SpeechWatch
from streamenc.serve.inputs.inputbase import Chunk

# Longer pieces are heard in a thread: 0.1 s of sound takes half a millisecond.
SHORT_SECONDS = Fraction(1, 10)


class SpeechTeller:
    """Hears what goes into the model.

    Args:
        asked: The client's options; None for none, and then it is off.
        rate: Samples a second that the model takes; None where it takes no sound.
        time_base: Of the input's pts.

    Attributes:
        engine: Which detector it is; "" while there is none.
        on: Whether it hears.

    Raises:
        UsageError: Where the detector is not installed here, or the model takes no sound.
    """

    def __init__(self, asked: Vad | None, rate: Fraction | None, time_base: Fraction) -> None:
        self._options = structs.asdict(asked or Vad())
        self._rate, self._time_base = rate, time_base
        self._watch: SpeechWatch | None = None
        self.on = False
        if asked is not None:
            self.check(True)
            self._switch(True)

    @property
    def engine(self) -> str:
        return "" if self._watch is None else self._watch.engine

    def check(self, on: bool) -> None:
        """Raises InputError where it cannot be switched so."""
        if on and self._rate is None:
            raise InputError("vad is of models that take sound; this one takes none")

    async def switch(self, on: bool) -> list[SpeechTold]:
        """From the next sound on; speech that goes on where it is switched off has stopped."""
        told = self.end() if self.on and not on else []
        if on != self.on:
            await asyncio.to_thread(self._switch, on)  # which may open the network
        return told

    async def hear(self, chunk: Chunk) -> list[Chunk | SpeechTold]:
        """The next samples, and in between what they tell: behind the sample with which it is
        known, so that it comes at one place among the codes however the sound was cut."""
        if self._watch is None or not self.on:
            return [chunk]
        assert self._rate is not None and isinstance(chunk.data, np.ndarray)
        anew = self._watch.ends_at(chunk.pts, chunk.discontinuity)
        before: list[Chunk | SpeechTold] = [*(self._watch.flush() if anew else ())]
        heard = self._watch.taken
        push = self._watch.push
        if chunk.items <= self._rate * SHORT_SECONDS:
            told = push(chunk.data, chunk.pts)
        else:
            told = await asyncio.to_thread(push, chunk.data, chunk.pts)
        start = 0
        for event in told:
            stop = min(max(start, event.known - heard), chunk.items)
            before += [*_piece(chunk, start, stop), event]
            start = stop
        return [*before, *_piece(chunk, start, chunk.items)]

    def end(self) -> list[SpeechTold]:
        """The stream ends here: speech that goes on has stopped."""
        return self._watch.flush() if self._watch is not None and self.on else []

    def state(self) -> bytes:
        return b"" if self._watch is None or not self.on else self._watch.state()

    async def restore(self, state: bytes, on: bool) -> str:
        """Goes on from `state`. Where it cannot, it starts anew, and the answer says why."""
        await self.switch(on and self._rate is not None)
        if self._watch is None or not self.on:
            return ""
        try:
            self._watch.restore(state)
        except SnapshotError as error:
            return f"the detector of speech starts anew: {error}"
        return ""

    def _switch(self, on: bool) -> None:
        if on and self._rate is not None:
            self._watch = SpeechWatch(self._rate, self._time_base, **self._options)
        self.on = on


def _piece(chunk: Chunk, start: int, stop: int) -> list[Chunk]:
    """Some of a chunk's samples, where there are any."""
    if start == stop:
        return []
    if stop - start == chunk.items:
        return [chunk]
    begin, end = (chunk.duration * place // chunk.items for place in (start, stop))
    piece = replace(
        chunk,
        data=chunk.data[:, :, start:stop],  # type: ignore[call-overload]
        items=stop - start,
        pts=chunk.pts + begin,
        duration=end - begin,
        discontinuity=chunk.discontinuity and not start,
    )
    return [piece]
