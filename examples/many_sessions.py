"""Many live streams through one engine: callers come and go, each with its own bitrate.

    python examples/many_sessions.py [CALLERS [SECONDS]]

Each caller speaks for a while and sends its sound as a microphone does, 40 ms at a time. All share
one model and one worker thread, which steps those together that have a frame ready. Who finds the
engine full is told so at once, one caller freezes until the engine closes its session, and in the
end each stream's codes are compared with those of the same sound encoded alone.
"""

import asyncio
import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import streamenc
from streamenc import Codec, Engine, EngineFull, Scaled, UsageError
from streamenc.engine.exchange import outputs

CLIP = Path(__file__).parent / "data" / "speech.flac"
BITRATES = (2, 4, 8)  # codebooks


@dataclass
class Caller:
    """One stream: what was sent, and what came back."""

    name: str
    sound: torch.Tensor
    codebooks: int
    comes_at: float
    codes: list[np.ndarray] = field(default_factory=list)

    async def call(self, engine: Engine, codec: Codec) -> None:
        await asyncio.sleep(self.comes_at)
        try:
            session = engine.open(codec.encoder, codebooks=self.codebooks)
        except EngineFull as full:
            print(f"{self.name} is sent away: {full}")
            return
        hop = codec.spec.hop
        with session:
            clock = asyncio.get_running_loop().time
            start = clock()
            for number, chunk in enumerate(self.sound.split(hop, dim=-1), 1):
                due = start + number * hop / codec.sample_rate  # when its last sample is spoken
                await asyncio.sleep(due - clock())
                self.codes.append(codes(await session.step(chunk)))
            self.codes.append(codes(await session.flush()))
        print(f"{self.name} hangs up after {self.sound.shape[-1] / codec.sample_rate:.1f} s")

    def equals_alone(self, codec: Codec) -> float:
        """The share of frames with the same codes as those of the whole sound, encoded alone."""
        ours = np.concatenate(self.codes, axis=-1)
        alone = codec.encode(self.sound, codebooks=self.codebooks)
        alone = alone.codes if isinstance(alone, Scaled) else alone
        return float((ours == alone.numpy()).all(axis=1).mean())


def codes(output: outputs.Output) -> np.ndarray:
    """EnCodec 48 kHz gives a volume with its codes."""
    return outputs.values(output)


async def freeze(engine: Engine, codec: Codec) -> None:
    """A caller that connects and never speaks."""
    session = engine.open(codec.encoder)
    await asyncio.sleep(2)
    try:
        await session.step(torch.zeros(codec.spec.hop))
    except UsageError as closed:
        print(f"the frozen one hears: {closed}")


async def live(codec: Codec, callers: list[Caller]) -> None:
    places = max(2, 3 * len(callers) // 4)
    with Engine(max_sessions=places, idle_timeout_seconds=1.0) as engine:
        async with asyncio.TaskGroup() as calls:
            calls.create_task(freeze(engine, codec))
            for caller in callers:
                calls.create_task(caller.call(engine, codec))
        print(engine.statistics())


def main(callers: str = "24", seconds: str = "4") -> int:
    codec = streamenc.load("nano", part="encoder")
    chance = random.Random(1)
    speech = clip(codec)
    crowd = []
    for number in range(int(callers)):
        length = int(float(seconds) * chance.uniform(0.3, 0.7) * codec.sample_rate)
        start = chance.randrange(speech.shape[-1] - length)
        sound = speech[:, start : start + length]
        comes_at = chance.uniform(0, 0.3) * float(seconds)
        crowd.append(Caller(f"caller {number}", sound, chance.choice(BITRATES), comes_at))
    asyncio.run(live(codec, crowd))
    heard = [caller for caller in crowd if caller.codes]
    share = min(caller.equals_alone(codec) for caller in heard)
    print(f"codes as alone: {share:.2%} of the frames of each of {len(heard)} streams, or more")
    return 0 if share > 0.98 else 1


def clip(codec: Codec) -> torch.Tensor:
    """The example's speech as the codec takes it, (1, samples)."""
    sound = streamenc.read(CLIP, sample_rate=codec.sample_rate, channels=1)
    return torch.from_numpy(sound.data)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
