"""The examples for pipecat and LiveKit, at a real server, with sound that is made here."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr

from tests.serve.conftest import Served, nano

EXAMPLES = Path(__file__).parents[3] / "examples"
RATE = 48_000
# What others deprecate among themselves is no fault of the examples.
pytestmark = [pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def sound() -> np.ndarray[Any, Any]:
    return np.random.default_rng(3).integers(-6000, 6000, RATE, dtype=np.int16)


def encoded(sound: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    codec = nano()
    return codec.encode(soxr.resample(sound / np.float32(32768), RATE, codec.sample_rate)[None])[0]


def test_a_pipecat_processor(served: Served, sound: np.ndarray[Any, Any]) -> None:
    pytest.importorskip("pipecat", reason="needs pipecat-ai")
    from pipecat.frames.frames import InputAudioRawFrame
    from pipecat.tests.utils import run_test

    example = runpy.run_path(str(EXAMPLES / "pipecat_processor.py"))
    pieces = [InputAudioRawFrame(piece.tobytes(), RATE, 1) for piece in np.array_split(sound, 48)]
    processor = example["StreamencProcessor"](served.url, "nano")
    down, _ = asyncio.run(run_test(processor, frames_to_send=pieces))
    tokens = [frame for frame in down if isinstance(frame, example["TokensFrame"])]
    got = np.concatenate([frame.tokens for frame in tokens], axis=1)
    np.testing.assert_array_equal(got, encoded(sound))
    passed_on = [frame for frame in down if isinstance(frame, InputAudioRawFrame)]
    assert len(passed_on) == len(pieces) and not processor.dropped
    assert [frame.seconds for frame in tokens[:3]] == pytest.approx([0, 0.02, 0.04])
    assert not any(frame.discontinuity for frame in tokens)


def test_a_livekit_agent(
    served: Served, sound: np.ndarray[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = pytest.importorskip("livekit.agents", reason="needs livekit-agents")
    from livekit import rtc

    monkeypatch.setenv("STREAMENC_SERVER", served.url)
    example = runpy.run_path(str(EXAMPLES / "livekit_agent.py"))

    async def frames() -> AsyncIterator[Any]:
        for piece in np.array_split(sound, 90):
            yield rtc.AudioFrame(piece.tobytes(), RATE, 1, len(piece))

    async def recognise(agent: Any, audio: Any, settings: Any) -> AsyncIterator[int]:
        async for frame in audio:
            yield frame.samples_per_channel

    # There is no server of LiveKit here: what an agent hears is handed to it.
    monkeypatch.setattr(agents.Agent.default, "stt_node", staticmethod(recognise))
    heard: list[Any] = []

    class Listener(example["TokenAgent"]):  # type: ignore[misc]
        async def on_tokens(self, piece: Any) -> None:
            heard.append(piece)

    async def talk() -> int:
        listener = Listener(instructions="listen")
        return sum([n async for n in listener.stt_node(frames(), agents.ModelSettings())])

    assert asyncio.run(talk()) == len(sound)
    np.testing.assert_array_equal(
        np.concatenate([piece.data for piece in heard], axis=1), encoded(sound)
    )
