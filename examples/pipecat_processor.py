"""Tokens in a pipecat pipeline: a processor that sends what is heard to `streamenc serve`.

    pip install 'streamenc[serve]' pipecat-ai
    streamenc serve -m nano                                  # in another terminal
    python examples/pipecat_processor.py ws://127.0.0.1:8765 [MODEL]

In a pipeline of yours, put `StreamencProcessor` behind the transport's input: sound goes on as it
came, and a TokensFrame follows for each hop of the model. Run as above, pipecat's own test harness
sends it two seconds of a rising tone.
"""

import asyncio
import sys
from dataclasses import dataclass

import numpy as np
from pipecat.frames.frames import CancelFrame, DataFrame, EndFrame, Frame, InputAudioRawFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.tests.utils import run_test

import streamenc.client

# Sound that may wait for the server, in frames of mostly 20 ms; beyond that the oldest goes.
MAX_WAITING = 250


@dataclass
class TokensFrame(DataFrame):
    """Codes or features of a piece of sound.

    tokens         (codebooks, frames), or (channels, frames)
    seconds        When it begins, counted from the first sound that came.
    discontinuity  It does not follow on from the one before.
    """

    tokens: np.ndarray
    seconds: float
    discontinuity: bool


class StreamencProcessor(FrameProcessor):
    """Sends sound to a server, and pushes what comes back downstream.

    Args:
        address, model: As `streamenc.client.connect` takes them, and all of its options.

    Attributes:
        dropped: Frames of sound that were dropped, as the server was not there or too slow.
    """

    def __init__(self, address: str, model: str, **options) -> None:
        super().__init__()
        self._address, self._options = address, {"model": model, "format": "s16", **options}
        self._sound: asyncio.Queue[InputAudioRawFrame | None] = asyncio.Queue(MAX_WAITING)
        self._running: asyncio.Task | None = None
        self.dropped = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            if self._running is None:
                self._running = self.create_task(self._run(frame.sample_rate, frame.num_channels))
            if self._sound.full():
                self._sound.get_nowait()
                self.dropped += 1
            self._sound.put_nowait(frame)
        elif isinstance(frame, EndFrame) and self._running is not None:
            await self._sound.put(None)
            await self._running  # the tail comes out before the end goes on
            self._running = None
        elif isinstance(frame, CancelFrame):
            await self.cleanup()
        await self.push_frame(frame, direction)

    async def cleanup(self) -> None:
        await super().cleanup()
        if self._running is not None:
            running, self._running = self._running, None
            await self.cancel_task(running)

    async def _run(self, rate: int, channels: int) -> None:
        stream = streamenc.client.connect(
            self._address, rate=rate, channels=channels, **self._options
        )
        async with stream:
            receiving = self.create_task(self._receive(stream))
            try:
                while (frame := await self._sound.get()) is not None:
                    samples = np.frombuffer(frame.audio, "<i2").reshape(-1, channels)
                    await stream.send(np.ascontiguousarray(samples.T))
                await stream.close()
                await receiving
            except asyncio.CancelledError:
                await self.cancel_task(receiving)
                raise

    async def _receive(self, stream: streamenc.client.ClientStream) -> None:
        async for piece in stream:
            await self.push_frame(TokensFrame(piece.data, piece.seconds, piece.discontinuity))


async def main(address: str, model: str = "nano") -> None:
    rate = 16_000
    times = np.arange(2 * rate) / rate
    tone = (8000 * np.sin(2 * np.pi * 200 * times * (1 + times))).astype("<i2")
    spoken = [
        InputAudioRawFrame(piece.tobytes(), rate, 1) for piece in tone.reshape(-1, rate // 50)
    ]
    processor = StreamencProcessor(address, model)
    down, _ = await run_test(processor, frames_to_send=spoken)
    tokens = [frame for frame in down if isinstance(frame, TokensFrame)]
    for frame in tokens[:3]:
        print(f"{frame.seconds:.2f} s", *frame.tokens[:, 0])
    print(f"{len(spoken)} frames of sound, {len(tokens)} of tokens, {processor.dropped} dropped")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    asyncio.run(main(*sys.argv[1:3]))
