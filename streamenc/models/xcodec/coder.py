"""The encoder and the decoder of X-Codec and of the Higgs tokenizer on a stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.layers.conv.centred import CentredConv1d
from streamenc.layers.quantize import FactorisedVQ, ResidualVQ
from streamenc.layers.streamed import Chain, Residual, Span
from streamenc.models.dac.blocks import DacNet, dac_decoder, dac_encoder
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.models.wav2vec2.encoder import RATE, SlidingEncoder, SpeechEncoder
from streamenc.models.xcodec.branches import Beside, Every, Padded, Resampled
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

Quantizer: TypeAlias = ResidualVQ | FactorisedVQ


@dataclass(frozen=True)
class XcodecShape:
    """What the codec is made of, beside its semantic model.

    kernel, unit_kernel, dilations, blocks  Of the convolutions behind the semantic model.
    dim         Of the codebooks, where each is projected to and from; 0 where none is.
    rate        Of the sound, in Hz; the semantic model hears it at 16 kHz.
    every       Frames of the semantic model for each one of the codec, of which the first is taken.
    """

    net: DacNet
    semantic_width: int
    kernel: int
    unit_kernel: int
    dilations: tuple[int, ...]
    blocks: int
    levels: int
    entries: int
    family: str = "xcodec"
    dim: int = 0
    rate: int = RATE
    every: int = 1

    @property
    def width(self) -> int:
        """Of both branches together, in which the codebooks lie."""
        return self.net.latent + self.semantic_width

    def quantizer(self) -> Quantizer:
        if self.dim:
            return FactorisedVQ(self.levels, self.entries, self.dim, self.width, directional=False)
        return ResidualVQ(self.levels, self.entries, self.width)


class Clip(SlidingEncoder):
    """The published semantic model on a stream of one piece: all frames see all of it."""

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert state is None and end, "a clip comes as one piece"
        return self.chain(x), None


class XcodecEncoder(Model):
    """Audio -> latents (batch, 1024, frames); `after` quantises them.

    Zeros fill the last frame, as the published feature extractor has it: with whole frames both
    branches come to the same number of them.
    """

    def __init__(self, shape: XcodecShape, semantic: SpeechEncoder, quantizer: Quantizer) -> None:
        super().__init__()
        heard: list[nn.Module] = []
        if shape.rate != RATE:
            common = math.gcd(shape.rate, RATE)
            heard.append(Resampled(shape.rate // common, RATE // common))
        heard += [Padded(semantic.shape.hop // 2), semantic]
        if shape.every > 1:
            heard.append(Every(shape.every))
        both = Beside(dac_encoder(shape.net), Chain([*heard, semantic_convolutions(shape)]))
        self.chain = Chain([both, CentredConv1d(shape.width, shape.width, 1)])
        self.quantizer = quantizer
        self.latent, self.frame = shape.width, shape.net.hop
        self.window = semantic.options.window // shape.every
        rate = Fraction(shape.rate)
        self.spec = StreamSpec(
            name=shape.family,
            input=Port("audio", rate, shape.net.channels),
            output=Port("codes", rate / shape.net.hop, quantizer.levels, "uint16"),
            steps=self.steps,
            equality="window",
            receptive_field=self.receptive_field(),
            codebook_size=quantizer.codebooks.shape[1],
            note=f"the semantic branch: {semantic.spec.note}",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.latent, 0), None
        if end:
            before = 0 if state is None else self.spec.lead  # and whole hops
            x = F.pad(x, (0, -(before + x.shape[-1]) % self.frame))
        return self.chain.step(x, state, end=end)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        levels = None if codebooks is None else self.check_codebooks(codebooks)
        return self.quantizer.encode(y, levels)


class SegmentEncoder(XcodecEncoder):
    """The published codec on clips of so many frames, one after the other, each by itself.

    The last one is as long as what is left. No state.

    semantic  Its window is the length of a clip.
    """

    def __init__(self, shape: XcodecShape, semantic: Clip, quantizer: Quantizer) -> None:
        super().__init__(shape, semantic, quantizer)
        note = f"clips of {self.window * self.frame / shape.rate:g} s, each encoded by itself"
        self.spec = replace(self.spec, equality="segment", note=note)

    @property
    def steps(self) -> Steps:
        samples = self.window * self.frame
        return Steps(samples, samples, self.window, self.window)

    def reach(self, first: int, last: int) -> Span:
        samples = self.window * self.frame
        start, stop = (item // self.window * samples for item in (first, last))
        return start, stop + samples - 1

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert end or not x.shape[-1] % self.spec.hop
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.latent, 0), None
        x = F.pad(x, (0, -x.shape[-1] % self.frame))
        starts = range(0, x.shape[-1], self.spec.hop)
        clips = [self.chain(x[..., start : start + self.spec.hop]) for start in starts]
        return torch.cat(clips, dim=-1), None


class XcodecDecoder(Model):
    """Codes -> audio, a hop for each frame; any number of codebooks from 1 up, which may change.

    `before` looks their entries up: their sum, (batch, 1024, frames), or where each codebook is
    projected, all of them, one below the other. `step` projects.
    """

    def __init__(self, shape: XcodecShape, quantizer: Quantizer) -> None:
        super().__init__()
        layers = [CentredConv1d(shape.width, shape.net.latent, 1), dac_decoder(shape.net)]
        if shape.dim:
            looked_up = shape.levels * (shape.dim + 1)
            layers.insert(0, CentredConv1d(looked_up, shape.width, 1, bias=False))
        self.chain = Chain(layers)
        self.quantizer = quantizer
        rate = Fraction(shape.rate)
        self.spec = StreamSpec(
            name=shape.family,
            input=Port("codes", rate / shape.net.hop, quantizer.levels, "uint16"),
            output=Port("audio", rate, shape.net.channels),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=quantizer.codebooks.shape[1],
        )

    def before(self, x: Signal) -> Tensor:
        codes = self.check_codes(super().before(x))
        if isinstance(self.quantizer, FactorisedVQ):
            return self.quantizer.vectors(codes).to(self.like.dtype)
        return self.quantizer.decode(codes).to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), None
        return self.chain.step(x, state, end=end)


def semantic_convolutions(shape: XcodecShape) -> Chain:
    """What stands behind the semantic model, (batch, width, frames) -> the same shape."""
    width = shape.semantic_width
    layers: list[nn.Module] = [CentredConv1d(width, width, shape.kernel, bias=False)]
    for _ in range(shape.blocks):
        for dilation in shape.dilations:
            wide = CentredConv1d(width, width, shape.unit_kernel, dilation=dilation, bias=False)
            narrow = CentredConv1d(width, width, 1, bias=False)
            layers.append(Residual(Chain([nn.ELU(), wide, nn.ELU(), narrow])))
        layers.append(CentredConv1d(width, width, 3))
    return Chain(layers)
