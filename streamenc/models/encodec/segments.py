"""EnCodec 48 kHz stereo: segments of one second with 1 % overlap, each encoded for itself.

A segment is 48,000 samples; the next one starts 47,520 later. It is divided by its volume (the
scale), goes through convolutions that see all of it, and gives 150 frames. The decoder multiplies
by the scale and fades each segment into the next one over the 480 samples that they share.

A stream ends as in the encodec package: a segment starts every 47,520 samples as long as there is a
sample, so the samples that the last whole segment shares with its successor are encoded again, as a
short segment; and where at most 480 samples go beyond them, the segment before is short as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.errors import InputError
from streamenc.layers.quantize import ResidualVQ
from streamenc.layers.streamed import Span
from streamenc.models.model import Model
from streamenc.models.seanet import Seanet, seanet_decoder, seanet_encoder
from streamenc.models.signal import Scaled, Signal
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

# Keeps silence from being divided by zero; part of the published scale.
SILENCE = 1e-8
# Below any weight: stands for it where there is no sample.
TINY = 1e-12


@dataclass(frozen=True, slots=True)
class Segments:
    """The grid of segments: the length of one and the distance between two, in samples."""

    length: int
    stride: int
    hop: int

    @classmethod
    def of(cls, config: Mapping[str, Any], hop: int) -> Self:
        """From `chunk_length_s` and `overlap`. Raises ValueError where these cannot be streamed."""
        length = int(config["chunk_length_s"] * config["sampling_rate"])
        stride = max(1, int((1.0 - config["overlap"]) * length))
        # With less than two hops shared, the last segment but one lacks one frame at most.
        if length % hop or not 0 <= length - stride < 2 * hop or stride <= hop:
            raise ValueError(
                f"segments of {length} samples every {stride}; wanted whole frames of {hop} "
                "samples and an overlap of less than two frames"
            )
        return cls(length, stride, hop)

    @property
    def overlap(self) -> int:
        """Samples that two segments share."""
        return self.length - self.stride

    @property
    def frames(self) -> int:
        """Latent frames of a segment."""
        return self.length // self.hop

    @property
    def frame_rate(self) -> Fraction:
        """Latent frames per sample of the stream: segments overlap, so more than 1 / hop."""
        return Fraction(self.frames, self.stride)


class SegmentEncoder(Model):
    """Audio -> latents with the scale as one more channel, (batch, latent + 1, frames).

    `after` quantises the latents: Scaled(codes, scale).

    State: the samples that the next segment shares with the last one, (batch, channels, overlap).
    """

    def __init__(
        self, net: Seanet, quantizer: ResidualVQ, sample_rate: int, segments: Segments
    ) -> None:
        super().__init__()
        self.chain = seanet_encoder(net)
        self.quantizer = quantizer
        self.segments = segments
        self.spec = StreamSpec(
            name="encodec",
            input=Port("audio", Fraction(sample_rate), net.channels),
            output=Port("codes", sample_rate * segments.frame_rate, quantizer.levels, "uint16"),
            steps=self.steps,
            equality="segment",
            codebook_size=quantizer.codebooks.shape[1],
            receptive_field=self.receptive_field(),
            scaled=True,
        )

    @property
    def steps(self) -> Steps:
        frames = self.chain.steps.outputs(self.segments.length)
        return Steps(self.segments.length, self.segments.stride, frames, frames)

    def reach(self, first: int, last: int) -> Span:
        start, stop = (
            item // self.segments.frames * self.segments.stride for item in (first, last)
        )
        return start, stop + self.segments.length - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if isinstance(state, Tensor):
            x = torch.cat((state, x), dim=-1) if x.shape[-1] else state
        length, stride = self.segments.length, self.segments.stride
        last = x.shape[-1] if end else x.shape[-1] - self.segments.overlap
        assert end or (last > 0 and not last % stride), f"{x.shape[-1]} samples in mid-stream"
        encoded = [self._encode(x[..., at : at + length]) for at in range(0, last, stride)]
        if not encoded:
            return x.new_zeros(x.shape[0], self.quantizer.codebooks.shape[2] + 1, 0), state
        carried = x[..., x.shape[-1] - self.segments.overlap :]
        return torch.cat(encoded, dim=-1), None if end else carried.contiguous()

    def _encode(self, segment: Tensor) -> Tensor:
        mono = segment.mean(dim=1, keepdim=True)
        scale = mono.square().mean(dim=-1, keepdim=True).sqrt() + SILENCE
        latents = self.chain(segment / scale)
        return torch.cat((latents, scale.expand(-1, -1, latents.shape[-1])), dim=1)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        levels = None if codebooks is None else self.check_codebooks(codebooks)
        return Scaled(self.quantizer.encode(y[:, :-1], levels), y[:, -1:])


class SegmentDecoder(Model):
    """Scaled(codes, scale) -> audio; `before` looks the codes up: (batch, latent + 1, frames).

    A step takes whole segments; the last one whatever is left. A stream may end on a segment that
    lacks one frame and another of one frame: the two are told from a whole one by their scales.

    State: the end of the last segment, which the next one fades into: weighted samples (batch,
    channels, overlap) and their weights (batch, 1, overlap), 0 where there is no sample.
    """

    uncapturable = "what it computes depends on the scales"

    def __init__(
        self, net: Seanet, quantizer: ResidualVQ, sample_rate: int, segments: Segments
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.chain = seanet_decoder(net)
        self.segments = segments
        self.spec = StreamSpec(
            name="encodec",
            input=Port("codes", sample_rate * segments.frame_rate, quantizer.levels, "uint16"),
            output=Port("audio", Fraction(sample_rate), net.channels),
            steps=self.steps,
            equality="segment",
            codebook_size=quantizer.codebooks.shape[1],
            receptive_field=self.receptive_field(),
            scaled=True,
        )

    @property
    def steps(self) -> Steps:
        frames = self.chain.steps.inputs(self.segments.length)
        return Steps(frames, frames, self.segments.stride, self.segments.stride)

    def reach(self, first: int, last: int) -> Span:
        # The segment before still sounds while it is faded out.
        start = max(0, first - self.segments.overlap) // self.segments.stride
        stop = last // self.segments.stride + 1
        return start * self.segments.frames, stop * self.segments.frames - 1

    def before(self, x: Signal) -> Tensor:
        if not isinstance(x, Scaled):
            raise InputError(
                f"this {self.spec.name} wants Scaled(codes, scale), as encoded; got a "
                f"{type(x).__name__}"
            )
        codes = self.check_codes(torch.as_tensor(x.codes).to(self.like.device))
        scale = torch.as_tensor(x.scale).to(self.like)
        if scale.shape != (codes.shape[0], 1, codes.shape[2]):
            raise InputError(
                f"the scale has shape {tuple(scale.shape)}; wanted one for each frame, "
                f"{(codes.shape[0], 1, codes.shape[2])}"
            )
        return torch.cat((self.quantizer.decode(codes).to(self.like.dtype), scale), dim=1)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        frames, stride = self.segments.frames, self.segments.stride
        assert end or not x.shape[-1] % frames, f"{x.shape[-1]} frames in mid-stream"
        parts: list[tuple[Tensor, Tensor]] = []
        carried: tuple[Tensor, Tensor] | None = None
        if isinstance(state, tuple):
            samples_before, weights_before = state
            assert isinstance(samples_before, Tensor) and isinstance(weights_before, Tensor)
            carried = samples_before, weights_before
        for at in range(0, x.shape[-1], frames):
            audio, weights = self._weighted(x[..., at : at + frames], first=carried is None)
            if carried is not None:
                audio[..., : self.segments.overlap] += carried[0]
                weights[..., : self.segments.overlap] += carried[1]
            parts.append((audio[..., :stride], weights[..., :stride]))
            carried = audio[..., stride:].contiguous(), weights[..., stride:].contiguous()
        if end and carried is not None:
            parts.append(carried)
        if not parts:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), state
        audio, weights = (torch.cat(tensors, dim=-1) for tensors in zip(*parts, strict=True))
        if end:
            length = int((weights > 0).any(dim=0).sum())
            audio, weights = audio[..., :length], weights[..., :length].clamp(min=TINY)
        return (audio / weights).to(x.dtype), None if end else carried

    def _weighted(self, x: Tensor, *, first: bool) -> tuple[Tensor, Tensor]:
        """A segment's samples, weighted, (batch, channels, length), and the weights."""
        frames, hop = self.segments.frames, self.segments.hop
        y, weights = self._alone(x, self.segments.length)
        if x.shape[-1] < frames or self.segments.overlap < hop:
            return y, weights
        split = x[:, -1, -1] != x[:, -1, -2]
        if not split.any():
            return y, weights
        # The published weights rise and fall over as many samples as the first segment of all has.
        ramp = self.segments.length - hop if first else self.segments.length
        short = self._alone(x[..., :-1], ramp)
        single = self._alone(x[..., -1:], ramp)
        stride = self.segments.stride
        for ours, added in zip(short, single, strict=True):
            ours[..., stride:] += added[..., : ours.shape[-1] - stride]
        mask = split.view(-1, 1, 1)
        return torch.where(mask, short[0], y), torch.where(mask, short[1], weights)

    def _alone(self, x: Tensor, ramp: int) -> tuple[Tensor, Tensor]:
        """One segment under the published triangle over `ramp` samples; zeros after its end."""
        y = self.chain(x[:, :-1]) * x[:, -1:, :1]
        dtype = torch.promote_types(x.dtype, torch.float32)
        time = torch.linspace(0, 1, ramp + 2, dtype=dtype, device=x.device)[1 : y.shape[-1] + 1]
        weights = (0.5 - (time - 0.5).abs()).expand(y.shape[0], 1, -1)
        missing = self.segments.length - y.shape[-1]
        return F.pad(y * weights, (0, missing)), F.pad(weights, (0, missing))
