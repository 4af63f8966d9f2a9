"""Tokens in a LiveKit agent: what a participant says goes to `streamenc serve` as it is spoken.

    pip install 'streamenc[serve]' livekit-agents
    streamenc serve -m nano                                  # in another terminal
    export STREAMENC_SERVER=ws://127.0.0.1:8765
    python examples/livekit_agent.py start                   # LIVEKIT_URL and its keys are set
    python examples/livekit_agent.py try                     # without LiveKit: a rising tone

`tokens_of` turns any stream of LiveKit's audio frames into pieces of tokens. `TokenAgent` taps with
it what its speech recognition hears. `start` joins rooms, and publishes each participant's tokens
as data of the topic "streamenc/IDENTITY".
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress

import numpy as np
from livekit import agents, rtc

import streamenc.client
from streamenc.client import Received

SERVER = os.environ.get("STREAMENC_SERVER", "ws://127.0.0.1:8765")
MODEL = os.environ.get("STREAMENC_MODEL", "nano")
# Frames of sound that may wait for the server, mostly 10 to 50 ms each.
MAX_WAITING = 250


async def tokens_of(
    audio: AsyncIterable[rtc.AudioFrame], address: str, model: str, **options
) -> AsyncIterator[Received]:
    """What the model makes of the sound; rate and channels are those of the first frame.

    Other options are those of `streamenc.client.connect`.
    """
    frames = aiter(audio)
    first = await anext(frames, None)
    if first is None:
        return
    stream = streamenc.client.connect(
        address,
        model=model,
        format="s16",
        rate=first.sample_rate,
        channels=first.num_channels,
        **options,
    )

    async def send() -> None:
        frame = first
        while frame is not None:
            samples = np.frombuffer(frame.data, np.int16).reshape(-1, frame.num_channels)
            await stream.send(np.ascontiguousarray(samples.T))
            frame = await anext(frames, None)
        await stream.close()

    async with stream:
        sending = asyncio.create_task(send())
        try:
            async for piece in stream:
                yield piece
            await sending
        finally:
            sending.cancel()
            with suppress(asyncio.CancelledError):
                await sending


class TokenAgent(agents.Agent):
    """An agent of which `on_tokens` hears what its speech recognition hears.

    Attributes:
        dropped: Frames of sound that the server was too slow for.
    """

    dropped = 0

    async def on_tokens(self, piece: Received) -> None:
        """Yours to replace."""
        print(f"{piece.seconds:.2f} s", *piece.data[:, 0], flush=True)

    async def stt_node(self, audio: AsyncIterable[rtc.AudioFrame], model_settings):
        heard: asyncio.Queue[rtc.AudioFrame | None] = asyncio.Queue(MAX_WAITING)
        tapping = asyncio.create_task(self._tap(heard))

        async def passed_on() -> AsyncIterator[rtc.AudioFrame]:
            async for frame in audio:
                if heard.full():  # recognition waits for nobody
                    heard.get_nowait()
                    self.dropped += 1
                heard.put_nowait(frame)
                yield frame

        try:
            async for event in agents.Agent.default.stt_node(self, passed_on(), model_settings):
                yield event
            await heard.put(None)
            await tapping
        finally:
            tapping.cancel()

    async def _tap(self, heard: asyncio.Queue[rtc.AudioFrame | None]) -> None:
        async def frames() -> AsyncIterator[rtc.AudioFrame]:
            while (frame := await heard.get()) is not None:
                yield frame

        async for piece in tokens_of(frames(), SERVER, MODEL):
            await self.on_tokens(piece)


async def entrypoint(context: agents.JobContext) -> None:
    """Each participant's microphone, as tokens for all in the room."""
    await context.connect(auto_subscribe=agents.AutoSubscribe.AUDIO_ONLY)
    tasks: set[asyncio.Task] = set()

    async def publish(track: rtc.Track, name: str) -> None:
        async def frames() -> AsyncIterator[rtc.AudioFrame]:
            async for event in rtc.AudioStream(track):
                yield event.frame

        async for piece in tokens_of(frames(), SERVER, MODEL):
            await context.room.local_participant.publish_data(
                piece.data.tobytes(), topic=f"streamenc/{name}"
            )

    @context.room.on("track_subscribed")
    def subscribed(track: rtc.Track, _, participant: rtc.RemoteParticipant) -> None:
        if track.kind == rtc.TrackKind.KIND_AUDIO:
            task = asyncio.create_task(publish(track, participant.identity))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


async def rising_tone(seconds: float = 2.0, rate: int = 48_000) -> AsyncIterator[rtc.AudioFrame]:
    """Frames of 10 ms, as LiveKit gives them."""
    times = np.arange(round(seconds * rate)) / rate
    tone = (8000 * np.sin(2 * np.pi * 200 * times * (1 + times))).astype(np.int16)
    for piece in tone.reshape(-1, rate // 100):
        yield rtc.AudioFrame(piece.tobytes(), rate, 1, len(piece))


async def try_it() -> None:
    count = 0
    async for piece in tokens_of(rising_tone(), SERVER, MODEL):
        if count < 3:
            print(f"{piece.seconds:.2f} s", *piece.data[:, 0])
        count += 1
    print(f"{count} pieces of tokens")


if __name__ == "__main__":
    if sys.argv[1:] == ["try"]:
        asyncio.run(try_it())
    else:
        agents.cli.run_app(agents.WorkerOptions(entrypoint_fnc=entrypoint))
