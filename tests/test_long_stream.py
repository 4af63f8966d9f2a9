"""Up to an hour through encoder and decoder: memory stays flat, the end as exact as the start.

The models are narrow and have few samples a frame, but the published number of frames a second: an
hour is 45,000 frames of Mimi, which is 90,000 positions of its attention, and 270,000 of EnCodec.
"""

from __future__ import annotations

import gc
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import streamenc
from streamenc import state as states
from streamenc.stream import Stream
from streamenc.testing.signals import joined
from tests.support import references, zoo
from tests.support.compare import assert_close
from tests.support.profile import FULL

# A stream that begins so much later has forgotten all that it missed.
MEMORY_MINUTES = 2


def mimi() -> Any:
    return references.mimi(sampling_rate=300)


def encodec() -> Any:
    return references.encodec(sampling_rate=600, target_bandwidths=[2.7])


def minute(codec: streamenc.Codec, number: int) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return 0.3 * torch.randn(1, 1, 60 * codec.sample_rate, generator=generator)


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def push(stream: Stream, x: Tensor, alone: int) -> Tensor:
    """All but the last `alone` items in steps of many hops, and these one by one, as if live."""
    y = stream.push(x[..., : x.shape[-1] - alone])
    if not alone:
        return y
    stream.hops = 1
    return joined([y, stream.push(x[..., -alone:])])


class Live:
    """An encoder's stream, which gives latents, and a decoder's."""

    def __init__(self, codec: streamenc.Codec, hops: int) -> None:
        self.encoder = Stream(zoo.raw(codec.encoder), hops=hops)
        self.decoder = codec.decode_stream(hops=hops)

    def bytes(self) -> int:
        return states.nbytes(self.encoder.state) + states.nbytes(self.decoder.state)


@pytest.mark.parametrize(("build", "hops"), [(mimi, 50), (encodec, 300)], ids=["mimi", "encodec"])
@pytest.mark.parametrize("minutes", [8, pytest.param(60, marks=pytest.mark.slow)])
def test_the_last_minute_is_as_the_first(
    build: Callable[[], Any], hops: int, minutes: int, tmp_path: Path
) -> None:
    build().save_pretrained(tmp_path)
    codec = streamenc.load(str(tmp_path))
    live, late = Live(codec, hops), Live(codec, hops)
    settled, state_bytes, resident = 4, 0, 0
    for number in range(minutes):
        x = minute(codec, number)
        seconds = (60 if FULL else 10) if number == minutes - 1 else 0
        samples, frames = seconds * codec.sample_rate, round(seconds * codec.spec.output.rate)
        latents = push(live.encoder, x, samples)
        codes = codec.encoder.after(latents)
        audio = push(live.decoder, codes, frames)
        if number >= minutes - 1 - MEMORY_MINUTES:
            late_latents = push(late.encoder, x, samples)
            late_audio = push(late.decoder, codes, frames)
        if number == settled:
            state_bytes, resident = live.bytes(), resident_bytes()
        assert number < settled or live.bytes() == state_bytes
    grown = resident_bytes() - resident
    print(f"{state_bytes} bytes of state; the process grew by {grown / 1e6:.1f} MB")
    assert grown < 40e6
    assert live.encoder.pushed == minutes * 60 * codec.sample_rate
    assert live.encoder.pending == 0
    assert live.encoder.emitted == minutes * 60 * codec.spec.output.rate
    last = int(59 * codec.spec.output.rate)
    error = assert_close(latents[..., -last:], late_latents[..., -last:], 1e-5)
    samples = last * codec.decoder.spec.hop_out
    audio_error = assert_close(audio[..., -samples:], late_audio[..., -samples:], 1e-5)
    print(f"the last minute: latents {error:.1e}, audio {audio_error:.1e} from a stream begun late")
