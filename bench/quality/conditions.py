"""What is measured: a model with some of its codebooks, and Opus, each at a bitrate."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

import streamenc
from bench.quality.measures import RATE, Audio, Clip, lag_samples, resampled
from streamenc.errors import UsageError

OPUS_LATE_SECONDS = 0.0002


@dataclass(frozen=True, slots=True)
class Condition:
    """A codec at a bitrate.

    kbps       Nominal, kbit/s.
    codebooks  How many of a model's are used; None for Opus.
    run        Gives a clip's decoded signal at 16 kHz and the kbit/s that it took.
    """

    codec: str
    kbps: float
    codebooks: int | None
    run: Callable[[Clip], tuple[Audio, float]]

    def __str__(self) -> str:
        books = f", {self.codebooks} codebooks" if self.codebooks else ""
        return f"{self.codec}{books}, {self.kbps:g} kbit/s"


def opus(clip: Clip, kbps: float) -> tuple[Audio, float]:
    """Through libopus, mono at 16 kHz: voip, constant bitrate, 20 ms packets.

    Returns the decoded signal at 16 kHz, and the kbit/s of the packets without the container.
    Opus chooses its bandwidth: below 9 kbit/s narrow, with resamplers that leave it up to 0.1 ms
    late. That is inaudible but costs it 2 dB of SI-SDR, so it is taken off as the pre-skip is.
    """
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="ogg") as container:
        options = {"application": "voip", "vbr": "off", "frame_duration": "20"}
        stream = container.add_stream(
            "libopus", rate=RATE, layout="mono", format="flt", options=options
        )
        stream.bit_rate = round(kbps * 1000)
        samples = np.ascontiguousarray(clip.at(RATE)[None], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        packets = [*stream.encode(frame), *stream.encode(None)]
        sizes = [packet.size for packet in packets]
        container.mux(packets)
    file.seek(0)
    with av.open(file, "r") as written:
        rate = written.streams.audio[0].rate
        pieces = [piece.to_ndarray().mean(axis=0) for piece in written.decode(audio=0)]
    decoded = np.concatenate(pieces)
    late = max(0, lag_samples(clip.at(rate), decoded, round(OPUS_LATE_SECONDS * rate)))
    return resampled(decoded[late:], rate, RATE), sum(sizes) * 8 / (len(sizes) * 0.020) / 1000


class Subject:
    """A model under test. Each clip is encoded once, with all codebooks: fewer are the first ones.

    Raises UsageError where it is no codec of one channel.
    """

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.name = name
        self.codec = streamenc.load(name, device=device)
        spec = self.codec.spec
        channels = spec.input.channels
        if spec.output.kind != "codes" or not self.codec.has_decoder or channels != 1:
            raise UsageError(
                f"{name} makes {spec.output.kind} of {channels} channel{'s' * (channels > 1)}; "
                "wanted a codec of one channel with its decoder"
            )
        self.books = spec.output.channels
        self._codes: dict[str, Tensor] = {}

    def conditions(self, codebooks: Iterable[int]) -> list[Condition]:
        """One for each number of codebooks that the model has."""
        return [
            Condition(self.name, self.codec.spec.kbps(books), books, self._run(books))
            for books in codebooks
            if books <= self.books
        ]

    def codes(self, clip: Clip) -> Tensor:
        """(1, codebooks, frames), all codebooks."""
        if clip.name not in self._codes:
            self._codes[clip.name] = self.encode(clip.at(self.codec.sample_rate))
        return self._codes[clip.name]

    def encode(self, audio: Audio) -> Tensor:
        """(samples,) in the model's rate -> (1, codebooks, frames)."""
        codes = self.codec.encode(audio)
        assert isinstance(codes, Tensor)
        return codes

    def decode(self, codes: Tensor) -> Audio:
        """(1, codebooks, frames) -> (samples,) in the model's rate."""
        return _samples(self.codec.decode(codes))

    def decode_pieces(self, codes: Tensor, frames: int) -> Audio:
        """The same as a live stream, `frames` at a time."""
        with self.codec.decode_stream(hops=frames) as stream:
            pieces = [stream.push(piece) for piece in torch.split(codes, frames, dim=-1)]
            pieces.append(stream.flush())
        return _samples(torch.cat([piece for piece in pieces if isinstance(piece, Tensor)], -1))

    def _run(self, codebooks: int) -> Callable[[Clip], tuple[Audio, float]]:
        def run(clip: Clip) -> tuple[Audio, float]:
            decoded = self.decode(self.codes(clip)[:, :codebooks])
            return resampled(decoded, self.codec.sample_rate, RATE), self.codec.spec.kbps(codebooks)

        return run


def _samples(audio: Tensor) -> Audio:
    return audio[0, 0].float().cpu().numpy()
