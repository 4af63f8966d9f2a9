"""Whisper's encoder on a stream: in chunks with a bounded context, or window by window."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.checkpoints.configs import MAX_LAYERS, MAX_SIZE
from streamenc.errors import CannotLower
from streamenc.layers.attention.chunked import ChunkedTransformer
from streamenc.layers.conv.causal import ValidConv1d
from streamenc.layers.streamed import Span
from streamenc.models.mel import WHISPER_LOG_RANGE, MelEncoder
from streamenc.models.model import Model
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

RATE = 16_000
MEL_HOP = 160
# Samples and log-mel frames of one state.
STATE_HOP, STATE_FRAMES = 320, 2
LEAST_LOG = -10.0  # the log10 of the least energy that Whisper knows

MAX_BANDS = 201  # bins of its spectrum


@dataclass(frozen=True, slots=True)
class WhisperShape:
    """Sizes of an encoder.

    bands      Log-mel bands, 80 or 128.
    positions  States of a window: 1500 are 30 s.
    """

    bands: int
    width: int
    heads: int
    hidden: int
    layers: int
    positions: int = 1500

    def __post_init__(self) -> None:
        sizes = (self.bands, self.width, self.heads, self.hidden, self.layers, self.positions)
        if (
            not all(type(size) is int and 1 <= size <= MAX_SIZE for size in sizes)
            or self.width % self.heads
            or self.bands > MAX_BANDS
            or self.layers > MAX_LAYERS
        ):
            raise ValueError(
                f"sizes are whole numbers from 1 to {MAX_SIZE}, up to {MAX_BANDS} bands and "
                f"{MAX_LAYERS} layers, and heads divide the width: {self}"
            )

    @classmethod
    def of(cls, config: dict[str, Any]) -> WhisperShape:
        """From transformers' config.json. Raises ValueError or KeyError where it makes no sense."""
        if config.get("activation_function", "gelu") != "gelu":
            raise ValueError(f"activation {config['activation_function']!r}; only 'gelu' is known")
        return cls(
            config["num_mel_bins"],
            config["d_model"],
            config["encoder_attention_heads"],
            config["encoder_ffn_dim"],
            config["encoder_layers"],
            config.get("max_source_positions", 1500),
        )


@dataclass(frozen=True, slots=True)
class WhisperOptions:
    """How an encoder streams, in states of 20 ms.

    hop      States from step to step; of a chunk.
    ahead    States behind those that a step gives, which they see; in "window" whole hops.
    left     Chunks before its own that a state sees; only "chunked".
    windows  Each step gives all states of its window, not only a hop's; only "window".
    layers   Whose outputs are given, one below the other: 0 is what the first layer takes, the
             last layer's lies behind the final norm.
    """

    mode: str
    hop: int
    ahead: int
    left: int
    windows: bool
    layers: tuple[int, ...]


class WhisperNet(nn.Module):
    """What has weights: convolutions, positions and the transformer with its last norm."""

    def __init__(self, shape: WhisperShape, options: WhisperOptions) -> None:
        super().__init__()
        self.conv1 = ValidConv1d(shape.bands, shape.width, 3)
        self.conv2 = ValidConv1d(shape.width, shape.width, 3, 2)
        self.positions = nn.Parameter(torch.empty(shape.positions, shape.width))
        chunked = options.mode == "chunked"
        needed = max(options.layers)
        self.transformer = ChunkedTransformer(
            shape.width,
            shape.heads,
            shape.hidden,
            needed,
            options.hop if chunked else shape.positions,
            left=options.left,
            lookahead=options.ahead if chunked else 0,
            final_norm=needed == shape.layers,
            outputs=options.layers,
        )

    @property
    def embedding_steps(self) -> Steps:
        """Of the convolutions: with a zero before the stream, each takes one item less at first."""
        first, second = (
            replace(conv.steps, lead=conv.steps.lead - 1) for conv in (self.conv1, self.conv2)
        )
        return first.then(second)

    def embedding_reach(self, first: int, last: int) -> tuple[int, int]:
        """The log-mel frames that states before the transformer depend on."""
        for conv in (self.conv2, self.conv1):
            start, stop = conv.reach(first, last)
            first, last = max(0, (start or 0) - 1), stop - 1
        return first, last

    def embed(self, x: Tensor, state: State, *, end: bool) -> tuple[Tensor, State]:
        """The convolutions: (batch, bands, log-mel frames) -> (batch, width, states).

        Each has one zero before the stream and one behind it.
        """
        first, second = state if isinstance(state, tuple) else (None, None)
        zeros = (int(state is None), int(end))
        x, first = self.conv1.step(F.pad(x, zeros), first, end=end)
        x, second = self.conv2.step(F.pad(F.gelu(x), zeros), second, end=end)
        return F.gelu(x), (first, second)


class WhisperEncoder(Model):
    """What both modes share: 16 kHz audio -> states (batch, width, states) at 50 Hz."""

    def __init__(
        self, shape: WhisperShape, options: WhisperOptions, mel: MelEncoder, net: WhisperNet
    ) -> None:
        super().__init__()
        self.shape, self.options = shape, options
        self.mel, self.net = mel, net
        self.spec = self._spec()

    def _spec(self) -> StreamSpec:
        options, steps = self.options, self.steps
        channels = len(options.layers) * self.shape.width
        return StreamSpec(
            name="whisper",
            input=Port("audio", Fraction(RATE), 1),
            output=Port("features", Fraction(RATE * steps.hop_out, steps.hop), channels),
            steps=steps,
            equality="window",
            receptive_field=self.receptive_field(),
            note=self._note(),
        )

    def _note(self) -> str:
        raise NotImplementedError

    @property
    def like(self) -> Tensor:
        """The log-mel frames stay in float32 at least, so sound comes in as that."""
        return self.mel.like

    def prepare(self) -> None:
        super().prepare()
        self.mel.prepare()

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        raise CannotLower(f"the log-mel spectrum of {self.spec.name} has no instructions")

    def _nothing(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.spec.output.channels, 0)


def normalised(log_mel: Tensor, loudest: Tensor) -> Tensor:
    """Raises log-mel frames to 8 below the loudest and scales them, as published."""
    return (torch.maximum(log_mel, loudest - WHISPER_LOG_RANGE) + 4) / 4


class ChunkedEncoder(WhisperEncoder):
    """Each chunk attends to itself, to some chunks before it, and to what lies ahead of it.

    The convolutions are those of the whole stream. The floor of a chunk's log-mel frames lies below
    the loudest bin of the last 30 s, up to the chunk's end. Positions count to 30 s and begin anew.
    The end is followed by zeros, as published, as far as its last states see.

    State: of the mel; the loudest bin of each of the last chunks (batch, chunks); of the
    convolutions; how many states there were (batch,); of the transformer.
    """

    @property
    def _chunks(self) -> int:
        """Of whose loudest bins the floor is made: 30 s, in chunks."""
        return math.ceil(self.shape.positions / self.options.hop)

    @property
    def steps(self) -> Steps:
        states = self.mel.steps.then(self.net.embedding_steps)
        return states.then(self.net.transformer.steps)

    def reach(self, first: int, last: int) -> Span:
        start, stop = self.net.transformer.reach(first, last)
        begin, stop = self.net.embedding_reach(start or 0, stop)
        size, lead = STATE_FRAMES * self.options.hop, self._first_frames
        # The floor of a log-mel frame depends on all of its chunk, and on some chunks before it.
        chunks = [-(-max(0, frame + 1 - lead) // size) for frame in (begin, stop)]
        oldest = chunks[0] + 1 - self._chunks
        begin = lead + (oldest - 1) * size if oldest > 0 else 0
        return self.mel.reach(begin, lead - 1 + chunks[1] * size)

    @property
    def _first_frames(self) -> int:
        """Log-mel frames of a stream's first chunk: those ahead of it come with it, and one more
        for the first convolution."""
        return STATE_FRAMES * (self.options.hop + self.options.ahead) + 1

    def _note(self) -> str:
        options = self.options
        return (
            f"attention to the chunk of {seconds(options.hop)}, "
            f"{seconds(options.left * options.hop)} before it and {seconds(options.ahead)} after it"
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if isinstance(state, tuple):
            mel, loudest, convolutions, position, before = state
        else:
            mel = convolutions = before = None
            loudest = x.new_full((len(x), self._chunks), LEAST_LOG)
            position = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        assert isinstance(loudest, Tensor) and isinstance(position, Tensor)
        hop, ahead = self.options.hop, self.options.ahead
        wanted = 0
        if end:
            held_back = self.spec.delay if isinstance(state, tuple) else 0
            wanted = _states(x.shape[-1] + held_back)
            x = F.pad(x, (0, (hop + ahead) * STATE_HOP))
        log_mel, mel = self.mel.step(x, mel, end=end)
        first = self._first_frames if state is None else 0
        frames, loudest = self._floored(log_mel, loudest, first)
        frames = frames.to(self.net.positions.dtype)
        states, convolutions = self.net.embed(frames, convolutions, end=end)
        if end:
            # What the transformer holds back already lies ahead of its last chunk.
            missing = ahead if before is None else 0
            states = states[..., : -(-wanted // hop) * hop + missing if wanted else 0]
        count = states.shape[-1]
        places = (position[:, None] + torch.arange(count, device=x.device)) % self.shape.positions
        states = states + F.embedding(places, self.net.positions).transpose(1, 2)
        if end and not wanted:
            return self._nothing(x), None
        y, before = self.net.transformer.step(states, before, end=end)
        if end:
            y = y[..., :wanted]
        return y.to(x.dtype), (mel, loudest, convolutions, position + count, before)

    def _floored(self, log_mel: Tensor, loudest: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """The frames above the floor of their chunk; a stream's first chunk has `first` frames."""
        sizes, size = [], STATE_FRAMES * self.options.hop
        left = log_mel.shape[-1]
        while left:
            sizes.append(min(left, first or size))
            left, first = left - sizes[-1], 0
        if not sizes:
            return log_mel, loudest
        new = torch.stack(
            [part.amax(dim=(1, 2)) for part in torch.split(log_mel, sizes, dim=-1)], dim=1
        )
        held = torch.cat((loudest, new), dim=1)
        of_chunks = held[:, 1:].unfold(1, self._chunks, 1).amax(dim=-1)
        # By sizes that Python knows: a step waits for nothing, and can be captured.
        floors = zip(of_chunks.unbind(dim=1), sizes, strict=True)
        floor = torch.cat([one[:, None].expand(-1, size) for one, size in floors], dim=1)[:, None]
        return normalised(log_mel, floor), held[:, -self._chunks :].contiguous()


class WindowEncoder(WhisperEncoder):
    """At each hop the published encoder over the last 30 s, zeros after them where there are fewer.

    The window is cut from the samples, so its frames at the edges see the reflection or the zeros
    that the published feature extractor gives them: two at its start, one at its end, and two
    behind the end where zeros follow. All other frames are computed once. The floor lies below the
    loudest bin of each window. A tail is a hop that zeros fill up.

    State: of the mel, and the samples that wait for its next frame (batch, 1, 119); hops so far
    (batch,); the last 30 s of frames, newest last (batch, bands, frames); and the first two frames
    of a window from each of its hops on, (batch, bands, 2 * hops).
    """

    def __init__(
        self, shape: WhisperShape, options: WhisperOptions, mel: MelEncoder, net: WhisperNet
    ) -> None:
        super().__init__(shape, options, mel, net)
        self._frames = STATE_FRAMES * shape.positions
        self._hop_frames = STATE_FRAMES * options.hop
        self._hops = shape.positions // options.hop
        self._ahead = options.ahead // options.hop
        # With so many samples left over, all log-mel frames of some hops but the last can be had.
        self._waiting = 2 * mel.steps.hop - mel.steps.lead

    @property
    def steps(self) -> Steps:
        states = self.mel.steps.then(self.net.embedding_steps)
        hop, ahead = (n * states.hop for n in (self.options.hop, self.options.ahead))
        outputs = self.shape.positions if self.options.windows else self.options.hop
        return Steps(hop + ahead, hop, outputs, outputs)

    def reach(self, first: int, last: int) -> Span:
        steps = self.steps
        ends = [steps.lead + item // steps.hop_out * steps.hop for item in (first, last)]
        window = self.shape.positions // self.options.hop * steps.hop
        return max(0, ends[0] - window), ends[1] - 1

    def _note(self) -> str:
        return (
            f"the published encoder over the last {seconds(self.shape.positions)}, every "
            f"{seconds(self.options.hop)}"
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        hop = self.spec.hop
        tail = x.shape[-1] % hop
        assert end or not tail, f"{x.shape[-1]} samples in mid-stream; hop is {hop}"
        # Hops that came before the first window was due.
        early = 0 if state is not None else self._ahead
        pieces = list(torch.split(x, hop, dim=-1)) if x.shape[-1] else []
        if tail:
            pieces[-1] = F.pad(pieces[-1], (0, hop - tail))
        outputs = []
        for index, piece in enumerate(pieces):
            state = self._advance(piece, state)
            if index >= early and not (tail and index == len(pieces) - 1):
                outputs.append(
                    self._given(self._window(state), state, self._ahead, self.options.hop)
                )
        if end and state is not None:
            late = min(len(pieces) - bool(tail), self._ahead) if early else self._ahead
            states = late * self.options.hop + _states(tail)
            if self.options.windows and tail or states and not self.options.windows:
                offset = late + bool(tail) - 1
                outputs.append(self._given(self._window(state), state, offset, states))
        return torch.cat(outputs, dim=-1) if outputs else self._nothing(x), state

    def _advance(self, piece: Tensor, state: State) -> State:
        """Takes in a hop: all of its frames but those at its edges."""
        batch, bands = piece.shape[0], self.shape.bands
        edges = self.mel.step(piece[..., : self.mel.spec.lead + MEL_HOP], None)[0]
        if isinstance(state, tuple):
            mel, waiting, hops, frames, starts = state
            assert isinstance(waiting, Tensor) and isinstance(hops, Tensor)
            assert isinstance(frames, Tensor) and isinstance(starts, Tensor)
            piece = torch.cat((waiting, piece), dim=-1)
        else:
            mel = None
            hops = torch.zeros(batch, dtype=torch.int64, device=piece.device)
            frames = piece.new_full((batch, bands, self._frames), LEAST_LOG)
            starts = piece.new_full((batch, bands, 2 * self._hops), LEAST_LOG)
        new, mel = self.mel.step(piece[..., : -self._waiting], mel)
        frames = torch.cat((frames, new), dim=-1)[..., -self._frames :].contiguous()
        starts = torch.cat((starts[..., 2:], edges), dim=-1)
        return mel, piece[..., -self._waiting :].clone(), hops + 1, frames, starts

    def _window(self, state: State) -> Tensor:
        """The states of the whole window that ends where the sound so far ends."""
        assert isinstance(state, tuple)
        mel, waiting, hops, frames, starts = state
        assert isinstance(waiting, Tensor) and isinstance(hops, Tensor)
        assert isinstance(frames, Tensor) and isinstance(starts, Tensor)
        # The frames at its end, once with reflected sound behind it and once with zeros.
        last = self.mel.step(waiting, mel, end=True)[0]
        zeros = waiting.new_zeros((*waiting.shape[:2], 3 * MEL_HOP))
        behind = self.mel.step(torch.cat((waiting, zeros), dim=-1), mel, end=True)[0][..., :3]
        held = hops.clamp_max(self._hops)[:, None]
        length = held * self._hop_frames
        full = (held == self._hops)[:, :, None]
        behind = torch.where(full, F.pad(last, (0, 2)), behind)

        at = torch.arange(self._frames, device=waiting.device)
        # The newest of `frames` is the last but one of the window.
        log_mel = _at(frames, at + self._frames + 1 - length)
        log_mel = torch.where((at < length - 1)[:, None], log_mel, _at(behind, at - length + 1))
        log_mel = log_mel.masked_fill((at > length + 1)[:, None], LEAST_LOG)
        first = 2 * (self._hops - held) + torch.arange(2, device=waiting.device)
        log_mel = torch.cat((_at(starts, first), log_mel[..., 2:]), dim=-1)
        loudest = log_mel.amax(dim=(1, 2), keepdim=True)
        return self._encode(normalised(log_mel, loudest).to(self.net.positions.dtype)).to(
            waiting.dtype
        )

    def _encode(self, frames: Tensor) -> Tensor:
        """As published: (batch, bands, frames of 30 s) -> (batch, width, states)."""
        x = self.net.embed(frames, None, end=True)[0] + self.net.positions.t()
        return self.net.transformer.whole(x)

    def _given(self, window: Tensor, state: State, offset: int, states: int) -> Tensor:
        """What a step gives of a window: all of it, or `states` from `offset` hops before its last
        hop on."""
        if self.options.windows:
            return window
        assert isinstance(state, tuple) and isinstance(state[2], Tensor)
        start = (state[2].clamp_max(self._hops) - 1 - offset) * self.options.hop
        return _at(window, start[:, None] + torch.arange(states, device=window.device))


def _states(samples: int) -> int:
    """States of so many samples: of whole log-mel frames, the last one possibly of one frame."""
    return -(-(samples // MEL_HOP) // STATE_FRAMES)


def _at(x: Tensor, places: Tensor) -> Tensor:
    """x (batch, channels, time) at places (batch, count), clamped to what there is."""
    places = places.clamp(0, x.shape[-1] - 1)[:, None]
    return x.gather(-1, places.expand(-1, x.shape[1], -1))


def seconds(states: int) -> str:
    return f"{states * STATE_HOP / RATE:g} s"
