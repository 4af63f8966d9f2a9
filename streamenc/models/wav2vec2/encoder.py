"""The network of wav2vec 2.0, HuBERT and WavLM on a stream: its shape, its options, its layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from streamenc.layers.attention.chunked import ChunkedTransformer
from streamenc.layers.conv.causal import ValidConv1d
from streamenc.layers.linear import Linear
from streamenc.layers.norm import RunningNorm
from streamenc.layers.positions import PositionalConv
from streamenc.layers.quantize import ResidualVQ, encode
from streamenc.layers.streamed import Chain, Pointwise, Span, Streamed, steps_through
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

RATE = 16_000
# transformers' extractor adds it to the waveform's variance.
WAVEFORM_EPS = 1e-7
# About as long as the clips that the models were trained on.
NORM_SECONDS = 15.0
CALIBRATION_STEP_SECONDS = 10

Mode = Literal["chunked", "sliding"]


@dataclass(frozen=True)
class SpeechShape:
    """What the network is made of; the defaults are the base models.

    conv        (channels, kernel, stride) of each layer of the stem.
    group_norm  The first layer is normalised over time, the others not at all; else each is
                normalised over its channels.
    norm_first  The "stable layer norm" of the large models: before each branch.
    project_norm  Whether the stem's output is normalised.
    normalize   Whether the waveform is z-normalised.
    distances   (buckets, largest distance) of WavLM's bias by distance; None where there is none.
    """

    conv: tuple[tuple[int, int, int], ...] = (
        (512, 10, 5),
        *((512, 3, 2),) * 4,
        *((512, 2, 2),) * 2,
    )
    group_norm: bool = True
    conv_bias: bool = False
    project_norm: bool = True
    width: int = 768
    heads: int = 12
    feed_forward: int = 3072
    layers: int = 12
    norm_eps: float = 1e-5
    norm_first: bool = False
    position_kernel: int = 128
    position_groups: int = 16
    normalize: bool = True
    distances: tuple[int, int] | None = None

    @property
    def hop(self) -> int:
        return math.prod(stride for _, _, stride in self.conv)


BASE = SpeechShape()
LARGE = replace(
    BASE,
    group_norm=False,
    conv_bias=True,
    width=1024,
    heads=16,
    feed_forward=4096,
    layers=24,
    norm_first=True,
)


@dataclass(frozen=True)
class SpeechOptions:
    """How the network runs on a stream; what `load` takes, checked. Lengths are in frames.

    outputs    Hidden states that come out: 0 is the transformer's input, n what layer n gives.
    mean       Their mean, instead of one below the other.
    chunk, left, ahead  Of the attention; see ChunkedTransformer. left and ahead are in chunks.
    wait       Positions wait for the frames after them, instead of ending with the chunk.
    frozen     Statistics over time are those of a calibration clip.
    memory_seconds  Of running statistics.
    window, hop, ahead_frames  Of the sliding mode: the frames of a window, how far it moves, and by
               how many frames what comes out lies before its end.
    """

    mode: Mode
    outputs: tuple[int, ...]
    mean: bool = False
    chunk: int = 0
    left: int = 0
    ahead: int = 0
    wait: bool = False
    frozen: bool = False
    memory_seconds: float = NORM_SECONDS
    window: int = 0
    hop: int = 0
    ahead_frames: int = 0


class SpeechEncoder(Model):
    """16 kHz audio -> features (batch, channels, frames), or units (batch, 1, frames) by `after`.

    channels is the width times the number of hidden states, or the width where their mean is asked
    for. A stream of fewer than 400 samples has no frame.

    units  Centroids, a codebook of one level; None where features come out.
    """

    def __init__(
        self, family: str, shape: SpeechShape, options: SpeechOptions, units: int = 0
    ) -> None:
        super().__init__()
        self.shape, self.options = shape, options
        self.channels = shape.width * (1 if options.mean else len(options.outputs))
        self.units = ResidualVQ(1, units, self.channels) if units else None
        self.chain = Chain(self._layers())
        if options.chunk:
            self._divide_norms()
        rate = Fraction(RATE)
        frames = Port("features", rate / shape.hop, self.channels)
        if units:
            frames = Port("codes", frames.rate, 1, "uint16")
        self.spec = StreamSpec(
            name=family,
            input=Port("audio", rate, 1),
            output=frames,
            steps=self.steps,
            equality="window",
            codebook_size=units,
            receptive_field=self.receptive_field(),
            note=self._note(),
        )

    def _divide_norms(self) -> None:
        """Gives what normalises over time the blocks of what a step brings there."""
        steps, inside = self.chain.steps, Steps()
        for layer in self.chain.layers:
            if isinstance(layer, RunningNorm):
                hop = steps.hop // inside.hop * inside.hop_out
                layer.divide(inside.outputs(steps.lead), hop)
            elif isinstance(layer, Streamed):
                inside = inside.then(layer.steps)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        if codebooks is not None:
            self.check_codebooks(codebooks)
        return y if self.units is None else encode([self.units], y, [1])

    def norms(self) -> list[RunningNorm]:
        """What normalises over time: the waveform, the first convolution, both or none."""
        return [layer for layer in self.chain.layers if isinstance(layer, RunningNorm)]

    @torch.inference_mode()
    def calibrate(self, clip: Tensor) -> None:
        """Freezes the statistics over time at those of a clip, (samples,)."""
        x = clip.to(self.like.device, self.like.dtype)[None, None]
        size = math.ceil(CALIBRATION_STEP_SECONDS * RATE / self.spec.hop) * self.spec.hop
        for index, layer in enumerate(self.chain.layers):
            if not isinstance(layer, RunningNorm):
                continue
            head = Chain(self.chain.layers[: index + 1])
            state: State = None
            lead = self.spec.lead
            for start in (0, *range(lead, x.shape[-1], size)):
                piece = x[..., start : start + size if start else lead]
                if start:  # a ragged tail of the clip is left out
                    piece = piece[..., : piece.shape[-1] // self.spec.hop * self.spec.hop]
                if piece.shape[-1]:
                    _, state = head.step(piece, state, end=not start and x.shape[-1] < lead)
            assert isinstance(state, tuple)
            layer.freeze(state[-1])
        self.spec = replace(self.spec, receptive_field=self.receptive_field())

    def _layers(self) -> Iterable[nn.Module]:
        s, o = self.shape, self.options
        if s.normalize:
            yield self._norm(1, RATE)
        into = 1
        for index, (channels, kernel, stride) in enumerate(s.conv):
            yield ValidConv1d(into, channels, kernel, stride, bias=s.conv_bias)
            if not s.group_norm:
                yield ChannelNorm(channels)
            elif not index:
                yield self._norm(channels, RATE // stride, affine=True)
            yield nn.GELU()
            into = channels
        yield Projection(into, s, o.chunk or o.hop)
        yield PositionalConv(s.width, s.position_kernel, s.position_groups, self.position_chunk)
        if not s.norm_first:
            yield ChannelNorm(s.width, s.norm_eps)
        yield self._transformer()
        if o.mean:
            yield Mean(len(o.outputs))

    @property
    def position_chunk(self) -> int | None:
        return None if self.options.wait else self.options.chunk

    def _norm(self, channels: int, rate: int, affine: bool = False) -> RunningNorm:
        return RunningNorm(
            channels,
            None,
            memory=round(self.options.memory_seconds * rate) or None,
            eps=1e-5 if affine else WAVEFORM_EPS,
            affine=affine,
        )

    def _transformer(self) -> ChunkedTransformer:
        s, o = self.shape, self.options
        layers = max(o.outputs)  # those beyond are neither read nor computed
        return ChunkedTransformer(
            s.width,
            s.heads,
            s.feed_forward,
            layers,
            o.chunk or o.window,
            left=o.left,
            ahead=o.ahead,
            norm_first=s.norm_first,
            final_norm=s.norm_first and layers == s.layers,
            norm_eps=s.norm_eps,
            outputs=o.outputs,
            distances=s.distances,
        )

    def _note(self) -> str:
        s, o = self.shape, self.options
        ms = 1000 * s.hop / RATE
        notes = [f"chunks of {o.chunk * ms:g} ms that see {o.left} before them"]
        if o.ahead:
            notes[0] += f" and, in {o.ahead} layers, the next"
        notes.append("positions wait" if o.wait else "positions end with the chunk")
        if s.normalize or s.group_norm:
            running = f"the last {o.memory_seconds:g} s" if o.memory_seconds else "all so far"
            notes.append(f"normalised by {'a calibration clip' if o.frozen else running}")
        return "; ".join(notes)


class SlidingEncoder(SpeechEncoder):
    """The published model on windows that overlap, each computed anew.

    Window j ends `hop` frames after window j - 1 and has `window` frames, which are window * 320 +
    80 samples; it starts on the grid of the frames. The first one gives all its frames but the last
    `ahead_frames`, each later one the next `hop` of them. At the end of the stream a window that is
    shorter by what is missing gives the rest; a stream shorter than a window is one of its own.

    State: the samples that the next window shares with the last one, (batch, 1, samples).
    """

    @property
    def steps(self) -> Steps:
        o, stem = self.options, self._stem
        return Steps(stem.inputs(o.window), o.hop * stem.hop, o.window - o.ahead_frames, o.hop)

    def reach(self, first: int, last: int) -> Span:
        steps = self.steps
        start, stop = (-(-max(0, n + 1 - steps.lead_out) // steps.hop_out) for n in (first, last))
        return start * steps.hop, stop * steps.hop + steps.lead - 1

    @property
    def _stem(self) -> Steps:
        """Of the convolutions that make frames of samples, one for each hop of theirs."""
        return steps_through(x for x in self.chain.layers if isinstance(x, ValidConv1d))

    def _norm(self, channels: int, rate: int, affine: bool = False) -> RunningNorm:
        eps = 1e-5 if affine else WAVEFORM_EPS
        return RunningNorm(channels, None, eps=eps, affine=affine)

    @property
    def position_chunk(self) -> None:
        return None

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        o, hop = self.options, self.spec.hop
        started, signal = isinstance(state, tuple), x
        if isinstance(state, tuple):
            (before,) = state
            assert isinstance(before, Tensor)
            signal = torch.cat((before, x), dim=-1)
        overlap = o.window - o.hop - o.ahead_frames  # frames that the window before has given
        outputs = [x.new_zeros(x.shape[0], self.channels, 0)]
        while signal.shape[-1] >= self.spec.lead:
            y = self.chain(signal[..., : self.spec.lead])
            outputs.append(y[..., overlap if started else 0 : self.spec.lead_out])
            started, signal = True, signal[..., hop:]
        given = overlap if started else 0
        if end and signal.shape[-1] >= self._stem.inputs(given + 1):
            outputs.append(self.chain(signal)[..., given:])
        return torch.cat(outputs, dim=-1), (signal.contiguous(),)

    def _note(self) -> str:
        o, ms = self.options, 1000 * self.shape.hop / RATE
        return (
            f"the published model on windows of {o.window * ms:g} ms, anew every {o.hop * ms:g} "
            "ms; the first one is waited for"
        )


class ChannelNorm(Pointwise):
    """LayerNorm over the channels of each position, (batch, channels, time)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, 2))
        return y.transpose(1, 2)

    def lower(self, plan: Plan, x: AnyValue) -> AnyValue:
        return plan.norm(x, self.norm)


class Projection(Pointwise):
    """From the stem's channels to the transformer's width, at each frame alone."""

    def __init__(self, channels: int, shape: SpeechShape, rows: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=shape.norm_eps) if shape.project_norm else None
        self.linear = Linear(channels, shape.width, bias=True, rows=rows)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        if self.norm is not None:
            x = self.norm(x)
        y: Tensor = self.linear(x)
        return y.transpose(1, 2)

    def lower(self, plan: Plan, x: AnyValue) -> AnyValue:
        return plan.linear(x if self.norm is None else plan.norm(x, self.norm), self.linear)


class Mean(Pointwise):
    """The mean of `count` signals that lie one below the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, time = x.shape
        return x.reshape(batch, self.count, channels // self.count, time).mean(dim=1)
