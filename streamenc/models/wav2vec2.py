"""wav2vec 2.0 and HuBERT: features of speech, 50 a second (arXiv 2006.11477, 2106.07447).

Audio, 16 kHz mono -> convolutions without padding (400 samples seen, hop 320) -> projection -> a
convolution over 128 frames that stands for positions -> transformer. The two families are one
network, trained differently.

The published models take a whole clip: the transformer attends to all of it, the positions see 1.3
s ahead, the base models normalise over time, and some z-normalise the waveform. So no stream can
equal them, and two modes say which windows they run on instead:

`chunked`   Every frame is computed once. Attention by chunks, see `layers.chunked`; positions are
            cut at the chunk or wait; normalisation over time by running or frozen statistics, see
            `layers.running`. The convolutions with LayerNorm, and all else, are exact.
`sliding`   Windows of 2 s, say, each computed anew by the published model, of which the newest
            frames come out: what is commonly done, at 20 times the cost of the clip.

Layouts: transformers folders and files (with or without a head on top), and fairseq's names, whose
shape is read from the tensors.
"""

from __future__ import annotations

import hashlib
import math
import os
import wave
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from streamenc.checkpoints import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.base import Chain
from streamenc.layers.chunked import ChunkedTransformer
from streamenc.layers.conv import ValidConv1d
from streamenc.layers.linear import Linear
from streamenc.layers.positions import PositionalConv
from streamenc.layers.quantize import ResidualVQ, encode
from streamenc.layers.running import RunningNorm
from streamenc.models.base import Model, Signal
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

FAMILIES = ("wav2vec2", "hubert")
RATE = 16_000
# transformers' extractor adds it to the waveform's variance.
WAVEFORM_EPS = 1e-7
# Chunks of 16 frames: short for a listener, long enough that reading the weights, which costs the
# same for any chunk, is no more than half of a step.
CHUNK_MS = 320
# Windows of 2 s are common; keys and values of this much are cheap to attend to, and to hold.
CONTEXT_MS = 3200
# About as long as the clips that the models were trained on.
NORM_SECONDS = 15.0
MAX_CALIBRATION_SECONDS = 600
CALIBRATION_STEP_SECONDS = 10
MAX_UNITS = 1 << 16
MAX_SIZE = 1 << 16

Mode = Literal["chunked", "sliding"]


@dataclass(frozen=True)
class Shape:
    """What the network is made of; the defaults are the base models.

    conv        (channels, kernel, stride) of each layer of the stem.
    group_norm  The first layer is normalised over time, the others not at all; else each is
                normalised over its channels.
    norm_first  The "stable layer norm" of the large models: before each branch.
    project_norm  Whether the stem's output is normalised.
    normalize   Whether the waveform is z-normalised.
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

    @property
    def hop(self) -> int:
        return math.prod(stride for _, _, stride in self.conv)

    def samples(self, frames: int) -> int:
        """How many samples the stem makes exactly so many frames of."""
        for _, kernel, stride in reversed(self.conv):
            frames = (frames - 1) * stride + kernel
        return frames


BASE = Shape()
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
class Options:
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
    """16 kHz audio -> features (batch, channels, frames), or units (batch, 1, frames) by `leave`.

    channels is the width times the number of hidden states, or the width where their mean is asked
    for. A stream of fewer than 400 samples has no frame.

    units  Centroids, a codebook of one level; None where features come out.
    """

    def __init__(self, family: str, shape: Shape, options: Options, units: int = 0) -> None:
        super().__init__()
        self.shape, self.options = shape, options
        self.channels = shape.width * (1 if options.mean else len(options.outputs))
        self.units = ResidualVQ(1, units, self.channels) if units else None
        self.chain = Chain(self._layers())
        rate = Fraction(RATE)
        frames = Port("features", rate / shape.hop, self.channels)
        if units:
            frames = Port("codes", frames.rate, 1, "uint16")
        self.spec = StreamSpec(
            name=family,
            input=Port("audio", rate, 1),
            output=frames,
            lead=self.lead,
            hop=self.hop_frames * shape.hop,
            lead_out=self.lead_out,
            hop_out=self.hop_frames,
            delay=self.lead - self.hop_frames * shape.hop,
            equality="window",
            codebook_size=units,
            note=self._note(),
        )

    @property
    def hop_frames(self) -> int:
        return self.options.chunk

    @property
    def lead_out(self) -> int:
        return self.options.chunk

    @property
    def lead(self) -> int:
        """Samples of the first chunk, and of what it waits for."""
        o = self.options
        waits = (self.shape.position_kernel - 1) // 2 if o.wait else 0
        return self.shape.samples((1 + o.ahead) * o.chunk + waits)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        return self.chain.step(x, state, end=end)

    def leave(self, y: Tensor, codebooks: int | None = None) -> Signal:
        if codebooks is not None:
            self.check_codebooks(codebooks)
        return y if self.units is None else encode([self.units], y, [1])

    def fingerprint(self) -> str:
        """Adds the options to the base's, and frozen statistics, which are in no weight."""
        digest = hashlib.sha256(f"{super().fingerprint()} {self.options!r}".encode())
        for norm in self.norms():
            if norm.mean is not None and norm.variance is not None:
                both = torch.cat((norm.mean, norm.variance)).double().cpu()
                digest.update(both.numpy().tobytes())
        return digest.hexdigest()[:32]

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
            for start in (0, *range(self.lead, x.shape[-1], size)):
                piece = x[..., start : start + size if start else self.lead]
                if start:  # a ragged tail of the clip is left out
                    piece = piece[..., : piece.shape[-1] // self.spec.hop * self.spec.hop]
                if piece.shape[-1]:
                    _, state = head.step(piece, state, end=not start and x.shape[-1] < self.lead)
            assert isinstance(state, tuple)
            layer.freeze(state[-1])

    def _layers(self) -> Iterable[nn.Module]:
        s, o = self.shape, self.options
        if s.normalize:
            yield self._norm(1, self.lead, self.hop_frames * s.hop, RATE)
        into = 1
        for index, (channels, kernel, stride) in enumerate(s.conv):
            yield ValidConv1d(into, channels, kernel, stride, bias=s.conv_bias)
            if not s.group_norm:
                yield ChannelNorm(channels)
            elif not index:
                first = (self.lead - kernel) // stride + 1
                block = self.hop_frames * s.hop // stride
                yield self._norm(channels, first, block, RATE // stride, affine=True)
            yield nn.GELU()
            into = channels
        yield Projection(into, s, self.hop_frames)
        yield PositionalConv(s.width, s.position_kernel, s.position_groups, self.position_chunk)
        if not s.norm_first:
            yield ChannelNorm(s.width, s.norm_eps)
        yield self._transformer()
        if o.mean:
            yield Mean(len(o.outputs))

    @property
    def position_chunk(self) -> int | None:
        return None if self.options.wait else self.options.chunk

    def _norm(
        self, channels: int, first: int, block: int, rate: int, affine: bool = False
    ) -> RunningNorm:
        return RunningNorm(
            channels,
            block,
            first=first,
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
        )

    def _note(self) -> str:
        s, o = self.shape, self.options
        ms = 1000 * s.hop / RATE
        notes = [f"chunks of {o.chunk * ms:g} ms that see {o.left} before them"]
        if o.ahead:
            notes[0] += f" and, in {o.ahead} layers, the next"
        notes.append("positions wait" if o.wait else "positions end with the chunk")
        if s.normalize or s.group_norm:
            running = f"over the last {o.memory_seconds:g} s" if o.memory_seconds else "so far"
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
    def hop_frames(self) -> int:
        return self.options.hop

    @property
    def lead_out(self) -> int:
        return self.options.window - self.options.ahead_frames

    @property
    def lead(self) -> int:
        return self.shape.samples(self.options.window)

    @property
    def position_chunk(self) -> None:
        return None

    def _norm(
        self, channels: int, first: int, block: int, rate: int, affine: bool = False
    ) -> RunningNorm:
        eps = 1e-5 if affine else WAVEFORM_EPS
        return RunningNorm(channels, None, eps=eps, affine=affine)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        o, hop = self.options, self.spec.hop
        started, signal = isinstance(state, tuple), x
        if isinstance(state, tuple):
            (before,) = state
            assert isinstance(before, Tensor)
            signal = torch.cat((before, x), dim=-1)
        overlap = o.window - o.hop - o.ahead_frames  # frames that the window before has given
        outputs = [x.new_zeros(x.shape[0], self.channels, 0)]
        while signal.shape[-1] >= self.lead:
            y = self.chain(signal[..., : self.lead])
            outputs.append(y[..., overlap if started else 0 : self.lead_out])
            started, signal = True, signal[..., hop:]
        given = overlap if started else 0
        if end and signal.shape[-1] >= self.shape.samples(given + 1):
            outputs.append(self.chain(signal)[..., given:])
        return torch.cat(outputs, dim=-1), (signal.contiguous(),)

    def _note(self) -> str:
        o, ms = self.options, 1000 * self.shape.hop / RATE
        return (
            f"the published model on windows of {o.window * ms:g} ms, anew every {o.hop * ms:g} "
            "ms; the first one is waited for"
        )


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each position, (batch, channels, time)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(x.transpose(1, 2))
        return y.transpose(1, 2)


class Projection(nn.Module):
    """From the stem's channels to the transformer's width, at each frame alone."""

    def __init__(self, channels: int, shape: Shape, rows: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=shape.norm_eps) if shape.project_norm else None
        self.linear = Linear(channels, shape.width, bias=True, rows=rows)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        if self.norm is not None:
            x = self.norm(x)
        y: Tensor = self.linear(x)
        return y.transpose(1, 2)


class Mean(nn.Module):
    """The mean of `count` signals that lie one below the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, time = x.shape
        return x.reshape(batch, self.count, channels // self.count, time).mean(dim=1)


def published_spec(name: str) -> StreamSpec:
    """What the encoder of a published model promises, by its listed name."""
    shape = LARGE if "large" in name else BASE
    family = next(f for f in FAMILIES if f in name)
    with torch.device("meta"):
        return SpeechEncoder(family, shape, _options(shape, {})).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return _layout(checkpoint) is not None


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    mode: str = "chunked",
    layer: Any = None,
    layers: Any = None,
    mean: Any = False,
    chunk_ms: Any = None,
    left: Any = None,
    ahead: Any = None,
    positions: Any = None,
    norm: Any = None,
    norm_seconds: Any = None,
    calibration: Any = None,
    normalize: Any = None,
    window_ms: Any = None,
    hop_ms: Any = None,
    ahead_ms: Any = None,
    units: Any = None,
) -> tuple[SpeechEncoder, None]:
    """The encoder; there is no decoder. All options also come as strings.

    mode    "chunked" or "sliding"; see the module.
    layer, layers  The hidden states that come out, in this order: 9, "6,9", [0, -1] or "all". 0 is
            the transformer's input, 12 or -1 the last layer of a base model, which is the default;
            where a norm ends the network, the last one comes with it.
    mean    True gives their mean, False lays them one below the other.
    normalize  Whether the waveform is z-normalised; None for what preprocessor_config.json says,
            without one as transformers does (for fairseq's files: the models with LayerNorm).
    units   A file of k-means centroids, .npy or .safetensors, (units, channels), or an array: what
            comes out is the index of the nearest one.

    For "chunked":

    chunk_ms  The longest time that a frame's own chunk makes it wait; a multiple of 20.
    left    Chunks before its own that a frame sees; None for 3.2 s of them.
    ahead   Chunks after its own, each in one layer more: the first layers see them.
    positions  "cut" at the chunk's end, or "wait" for the 63 frames that they see ahead: 1.3 s.
    norm    "running" or "frozen" statistics over time; frozen ones need `calibration`.
    norm_seconds  How long running ones remember; 0 never forgets.
    calibration  A WAV file of 16 kHz, or an array of samples: how the speech to come sounds.

    For "sliding":

    window_ms, hop_ms  The windows' length and distance, multiples of 20; 2000 and 100.
    ahead_ms  How far before the window's end its newest frame lies that comes out; 0.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError("these features have no decoder; load the encoder")
    layout = _layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in "
            "wav2vec 2.0 or HuBERT (feature_extractor.conv_layers.0.conv.weight)"
        )
    shape = _shape(checkpoint, layout)
    if normalize is not None:
        shape = replace(shape, normalize=_flag("normalize", normalize))
    given = {
        "mode": mode,
        "layer": layer,
        "layers": layers,
        "mean": mean,
        "chunk_ms": chunk_ms,
        "left": left,
        "ahead": ahead,
        "positions": positions,
        "norm": norm,
        "norm_seconds": norm_seconds,
        "calibration": calibration,
        "window_ms": window_ms,
        "hop_ms": hop_ms,
        "ahead_ms": ahead_ms,
    }
    options = _options(shape, {key: value for key, value in given.items() if value is not None})
    stated = checkpoint.config.get("model_type")
    family = stated if stated in FAMILIES else name.partition(":")[0]
    kind = SlidingEncoder if options.mode == "sliding" else SpeechEncoder
    channels = shape.width * (1 if options.mean else len(options.outputs))
    centroids = None if units is None else _centroids(units, channels)
    with torch.device("meta"):
        encoder = kind(
            family if family in FAMILIES else FAMILIES[0],
            shape,
            options,
            0 if centroids is None else len(centroids),
        )
    origins = _origins(encoder, layout)
    if centroids is not None:
        origins["units.codebooks"] = lambda checkpoint: centroids[None]
    fill(encoder, origins, checkpoint)
    if options.frozen:
        encoder.calibrate(_clip(calibration))
    return encoder, None


def _options(shape: Shape, given: dict[str, Any]) -> Options:
    """Raises UsageError for what does not fit."""
    mode = given.get("mode", "chunked")
    by_mode = {
        "chunked": {
            "chunk_ms",
            "left",
            "ahead",
            "positions",
            "norm",
            "norm_seconds",
            "calibration",
        },
        "sliding": {"window_ms", "hop_ms", "ahead_ms"},
    }
    if mode not in by_mode:
        raise UsageError(f"mode is {' or '.join(by_mode)}; got {mode!r}")
    for other in by_mode.keys() - {mode}:
        if idle := given.keys() & by_mode[other]:
            raise UsageError(f"{', '.join(sorted(idle))} is of mode={other}, not of mode={mode}")
    outputs = _outputs(shape, given)
    mean = _flag("mean", given.get("mean", False))
    if mode == "sliding":
        window = _frames(shape, "window_ms", given.get("window_ms", 2000))
        hop = _frames(shape, "hop_ms", given.get("hop_ms", 100))
        ahead = _frames(shape, "ahead_ms", given.get("ahead_ms", 0), least=0)
        if hop + ahead > window:
            raise UsageError("a window is at least as long as hop_ms and ahead_ms together")
        return Options(
            "sliding", outputs, mean, wait=True, window=window, hop=hop, ahead_frames=ahead
        )
    chunk = _frames(shape, "chunk_ms", given.get("chunk_ms", CHUNK_MS))
    in_context = math.ceil(Fraction(CONTEXT_MS * RATE, 1000 * shape.hop * chunk))
    ahead = _whole("ahead", given.get("ahead", 0), 0, max(outputs))
    choice = _choice("norm", given.get("norm", "running"), ("running", "frozen"))
    frozen = choice == "frozen"
    if frozen != ("calibration" in given):
        raise UsageError("norm=frozen and calibration=CLIP belong together: give both, or neither")
    if frozen and "norm_seconds" in given:
        raise UsageError("norm_seconds is of norm=running; frozen statistics do not forget")
    return Options(
        "chunked",
        outputs,
        mean,
        chunk,
        _whole("left", given.get("left", in_context), 0, 10_000),
        ahead,
        _choice("positions", given.get("positions", "cut"), ("cut", "wait")) == "wait",
        frozen,
        0.0 if frozen else _seconds("norm_seconds", given.get("norm_seconds", NORM_SECONDS)),
    )


def _outputs(shape: Shape, given: dict[str, Any]) -> tuple[int, ...]:
    if "layer" in given and "layers" in given:
        raise UsageError("layer and layers are two names of one option; give one of them")
    wanted = given.get("layer", given.get("layers", -1))
    if wanted == "all":
        return tuple(range(shape.layers + 1))
    parts = wanted.split(",") if isinstance(wanted, str) else wanted
    parts = list(parts) if isinstance(parts, Iterable) else [parts]
    numbers = [_whole("layer", part, -shape.layers - 1, shape.layers) for part in parts]
    outputs = tuple(n % (shape.layers + 1) for n in numbers)
    if not outputs or len(set(outputs)) < len(outputs):
        raise UsageError(f"layers are numbers from 0 to {shape.layers}, each once; got {wanted!r}")
    return outputs


def _frames(shape: Shape, what: str, value: Any, least: int = 1) -> int:
    frame_ms = Fraction(1000 * shape.hop, RATE)
    frames = Fraction(_whole(what, value, 0, 60_000)) / frame_ms
    if frames.denominator != 1 or frames < least:
        raise UsageError(
            f"{what} is {value}; wanted a multiple of {float(frame_ms):g} ms, the length of a "
            f"frame{', above 0' if least else ''}"
        )
    return int(frames)


def _whole(what: str, value: Any, least: int, most: int) -> int:
    try:
        number = int(value)
        good = not isinstance(value, bool) and number == float(value)
    except (TypeError, ValueError, OverflowError):
        good, number = False, 0
    if not good or not least <= number <= most:
        raise UsageError(f"{what} is {value!r}; wanted a whole number from {least} to {most}")
    return number


def _seconds(what: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1
    # Two hundred days, so that samples are counted in 64 bits.
    if not 0 <= number < 2e7:
        raise UsageError(f"{what} is {value!r}; wanted seconds, from 0 up")
    return number


def _flag(what: str, value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise UsageError(f"{what} is {value!r}; wanted true or false") from None


def _choice(what: str, value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise UsageError(f"{what} is {value!r}; wanted {' or '.join(choices)}")
    return str(value)


def _centroids(units: Any, channels: int) -> Tensor:
    """(units, channels), float32. Raises UsageError, CheckpointError for a file."""
    where = "units"
    if isinstance(units, str | os.PathLike):
        where = os.fspath(units)
        units = _read_array(Path(units))
    centroids = torch.as_tensor(np.asarray(units))
    if not centroids.is_floating_point() or centroids.ndim != 2:
        raise CheckpointError(
            f"{where}: centroids are floats of shape (units, {channels}); got "
            f"{centroids.dtype} of shape {tuple(centroids.shape)}"
        )
    if centroids.shape[1] != channels or not 1 <= len(centroids) <= MAX_UNITS:
        raise CheckpointError(
            f"{where}: {len(centroids)} centroids of {centroids.shape[1]} channels; the features "
            f"have {channels}: were they made of another layer, or of a model of another size?"
        )
    if not torch.isfinite(centroids).all():
        raise CheckpointError(f"{where}: has values that are not finite")
    return centroids.float()


def _read_array(path: Path) -> Any:
    from safetensors.numpy import load_file

    try:
        if path.suffix == ".npy":
            # Mapped: a header that claims more than there is allocates nothing.
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        if path.suffix == ".safetensors":
            arrays = load_file(path)
            if len(arrays) == 1:
                return next(iter(arrays.values()))
            raise ValueError(f"it holds {len(arrays)} tensors; wanted one")
    except Exception as error:  # safetensors raises its own types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no readable file of centroids: {reason}") from error
    raise UsageError(
        f"{path}: centroids come as .npy or .safetensors, not as a pickle; for a k-means of "
        "scikit-learn: np.save('centroids.npy', kmeans.cluster_centers_)"
    )


def _clip(calibration: Any) -> Tensor:
    """Samples of a clip in [-1, 1]. Raises UsageError."""
    if isinstance(calibration, str | os.PathLike):
        calibration = _read_wav(Path(calibration))
    clip = torch.as_tensor(np.asarray(calibration, dtype=np.float32)).squeeze()
    if clip.ndim != 1 or clip.shape[0] < RATE // 10 or not torch.isfinite(clip).all():
        raise UsageError(
            f"a calibration clip is 0.1 s or more of finite samples at {RATE} Hz; got shape "
            f"{tuple(clip.shape)}"
        )
    return clip[: MAX_CALIBRATION_SECONDS * RATE]


def _read_wav(path: Path) -> Any:
    try:
        with wave.open(os.fspath(path)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if rate == RATE and width in (2, 4):
                raw = file.readframes(MAX_CALIBRATION_SECONDS * RATE)
                samples = np.frombuffer(raw, f"<i{width}").reshape(-1, channels)
                return samples.mean(axis=1) / (1 << (8 * width - 1))
        what = f"{rate} Hz, {8 * width} bits"
    except (OSError, EOFError, wave.Error, ValueError) as error:
        what = str(error) or type(error).__name__
    raise UsageError(
        f"calibration {path}: {what}; wanted a WAV file of {RATE} Hz and 16 bits: "
        f"ffmpeg -i CLIP -ar {RATE} -ac 1 calibration.wav"
    )


_Layout = tuple[str, Literal["transformers", "fairseq"]]
_STEMS: tuple[tuple[str, Literal["transformers", "fairseq"]], ...] = (
    ("feature_extractor.conv_layers.0.conv.weight", "transformers"),
    ("feature_extractor.conv_layers.0.0.weight", "fairseq"),
)


def _layout(checkpoint: Checkpoint) -> _Layout | None:
    """What stands before all names ("hubert." below a head), and whose names they are."""
    for name in sorted(checkpoint.names):
        for ending, layout in _STEMS:
            if name.endswith(ending) and name.removesuffix(ending)[-1:] in ("", "."):
                return name.removesuffix(ending), layout
    return None


def _shape(checkpoint: Checkpoint, layout: _Layout) -> Shape:
    """Raises CheckpointError for another network with the same stem."""
    stated = checkpoint.config.get("model_type")
    if stated not in (None, *FAMILIES):
        raise CheckpointError(f"{checkpoint.name} is {stated!r}, not wav2vec 2.0 or HuBERT")
    others = ("rel_attn_embed", "relative_attention_bias", "adapter_layer", "pos_conv.0.0.weight")
    for name in checkpoint.names:
        if any(other in name for other in others):
            raise CheckpointError(
                f"{checkpoint.name} has {name!r}, which wav2vec 2.0 and HuBERT have not; is it "
                "WavLM, data2vec, or a model with adapters?"
            )
    shape = _shape_of_tensors(checkpoint, layout)
    return _shape_of_config(checkpoint, shape) if checkpoint.config else shape


def _shape_of_config(checkpoint: Checkpoint, found: Shape) -> Shape:
    """In the words of transformers' config.json; what it leaves out is as in the base models."""
    config = checkpoint.config
    wanted = {
        "hidden_act": "gelu",
        "feat_extract_activation": "gelu",
        "conv_pos_batch_norm": False,
        "add_adapter": False,
        "adapter_attn_dim": None,
    }
    for key, value in wanted.items():
        if config.get(key, value) not in (value, None):
            raise CheckpointError(
                f"{checkpoint.name} has {key}={config[key]!r}; only {value!r} is known"
            )

    def number(key: str, default: int) -> int:
        value = config.get(key, default)
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise CheckpointError(f"{checkpoint.name}: config has {key}={value!r}")
        return value

    def numbers(key: str, default: Iterable[int]) -> list[int]:
        values = config.get(key, list(default))
        if not isinstance(values, list) or not all(
            type(n) is int and 1 <= n <= MAX_SIZE for n in values
        ):
            raise CheckpointError(f"{checkpoint.name}: config has {key}={values!r:.80}")
        return values

    channels, kernels, strides = (
        numbers(key, default)
        for key, default in zip(
            ("conv_dim", "conv_kernel", "conv_stride"), zip(*BASE.conv, strict=True), strict=True
        )
    )
    if not 1 <= len(channels) == len(kernels) == len(strides) <= 32 or any(
        k < s for k, s in zip(kernels, strides, strict=True)
    ):
        raise CheckpointError(
            f"{checkpoint.name}: conv_dim, conv_kernel and conv_stride are lists of one length, "
            "no stride above its kernel"
        )
    width, heads = number("hidden_size", BASE.width), number("num_attention_heads", BASE.heads)
    groups = number("num_conv_pos_embedding_groups", BASE.position_groups)
    if width % heads or width % groups:
        raise CheckpointError(
            f"{checkpoint.name}: {heads} heads and {groups} groups do not divide {width}"
        )
    eps = config.get("layer_norm_eps", BASE.norm_eps)
    if type(eps) not in (int, float) or not 0 <= eps < 1:
        raise CheckpointError(f"{checkpoint.name}: config has layer_norm_eps={eps!r}")
    return Shape(
        conv=tuple(zip(channels, kernels, strides, strict=True)),
        group_norm=config.get("feat_extract_norm", "group") == "group",
        conv_bias=bool(config.get("conv_bias", False)),
        project_norm=bool(config.get("feat_proj_layer_norm", True)),
        width=width,
        heads=heads,
        feed_forward=number("intermediate_size", BASE.feed_forward),
        layers=number("num_hidden_layers", BASE.layers),
        norm_eps=float(eps),
        norm_first=bool(config.get("do_stable_layer_norm", False)),
        position_kernel=number("num_conv_pos_embeddings", BASE.position_kernel),
        position_groups=groups,
        normalize=bool(checkpoint.preprocessor.get("do_normalize", True)),
    )


def _shape_of_tensors(checkpoint: Checkpoint, layout: _Layout) -> Shape:
    """For files without a config. Tensors do not tell strides and heads: as all models published
    have them, a kernel of 10 has stride 5, others have 2; and there are 16 heads from a width of
    1024 up, and heads of 64 below. Those with LayerNorm in the stem have it first everywhere."""
    prefix, whose = layout
    ours = _NAMES[whose]
    conv: list[tuple[int, int, int]] = []
    while (name := prefix + ours["conv"].format(len(conv)) + ".weight") in checkpoint:
        out, _, kernel = _axes(checkpoint, name, 3)
        conv.append((out, kernel, 5 if kernel == 10 else min(2, kernel)))
    layers = 0
    while prefix + ours["linear1"].format(layers) + ".weight" in checkpoint:
        layers += 1
    if not layers:
        raise CheckpointError(f"{checkpoint.name}: has a stem, but no transformer layer")
    feed_forward, width = _axes(checkpoint, prefix + ours["linear1"].format(0) + ".weight", 2)
    layer_norm = prefix + ours["conv_norm"].format(1) + ".weight" in checkpoint
    heads = 16 if width >= 1024 else max(1, width // 64)
    position = next(
        name
        for part in (".weight_v", ".parametrizations.weight.original1", ".weight")
        if (name := prefix + ours["position"] + part) in checkpoint or part == ".weight"
    )
    _, per_group, kernel = _axes(checkpoint, position, 3)
    if width % heads or width % per_group:
        raise CheckpointError(f"{checkpoint.name}: a width of {width} is of no published model")
    return Shape(
        conv=tuple(conv),
        group_norm=not layer_norm,
        conv_bias=prefix + ours["conv"].format(0) + ".bias" in checkpoint,
        project_norm=prefix + ours["project_norm"] + ".weight" in checkpoint,
        width=width,
        heads=heads,
        feed_forward=feed_forward,
        layers=layers,
        norm_first=layer_norm,
        position_kernel=kernel,
        position_groups=width // per_group,
        normalize=layer_norm or whose == "transformers",
    )


def _axes(checkpoint: Checkpoint, name: str, axes: int) -> tuple[int, ...]:
    shape = checkpoint.shape(name)
    if len(shape) != axes or not all(1 <= n <= MAX_SIZE for n in shape):
        raise CheckpointError(f"{checkpoint.name}: tensor {name!r} has shape {shape}")
    return shape


_NAMES = {
    "transformers": {
        "conv": "feature_extractor.conv_layers.{}.conv",
        "group_norm": "feature_extractor.conv_layers.0.layer_norm",
        "conv_norm": "feature_extractor.conv_layers.{}.layer_norm",
        "project_norm": "feature_projection.layer_norm",
        "project": "feature_projection.projection",
        "position": "encoder.pos_conv_embed.conv",
        "norm": "encoder.layer_norm",
        "attention": "encoder.layers.{}.attention",
        "norm1": "encoder.layers.{}.layer_norm",
        "linear1": "encoder.layers.{}.feed_forward.intermediate_dense",
        "linear2": "encoder.layers.{}.feed_forward.output_dense",
        "norm2": "encoder.layers.{}.final_layer_norm",
    },
    "fairseq": {
        "conv": "feature_extractor.conv_layers.{}.0",
        "group_norm": "feature_extractor.conv_layers.0.2",
        "conv_norm": "feature_extractor.conv_layers.{}.2.1",
        "project_norm": "layer_norm",
        "project": "post_extract_proj",
        "position": "encoder.pos_conv.0",
        "norm": "encoder.layer_norm",
        "attention": "encoder.layers.{}.self_attn",
        "norm1": "encoder.layers.{}.self_attn_layer_norm",
        "linear1": "encoder.layers.{}.fc1",
        "linear2": "encoder.layers.{}.fc2",
        "norm2": "encoder.layers.{}.final_layer_norm",
    },
}


def _origins(model: SpeechEncoder, layout: _Layout) -> dict[str, Origin]:
    """Where each parameter comes from."""
    prefix, whose = layout
    names = {key: prefix + name for key, name in _NAMES[whose].items()}
    origins: dict[str, Origin] = {}
    conv = 0
    for index, layer in enumerate(model.chain.layers):
        ours = f"chain.layers.{index}."
        if isinstance(layer, ValidConv1d):
            origins |= _both(ours, names["conv"].format(conv))
            conv += 1
        elif isinstance(layer, RunningNorm):
            origins |= {
                ours + part: _column(f"{names['group_norm']}.{part}") for part in ("weight", "bias")
            }
        elif isinstance(layer, ChannelNorm):
            stem = isinstance(model.chain.layers[index - 1], ValidConv1d)
            there = names["conv_norm"].format(conv - 1) if stem else names["norm"]
            origins |= _both(f"{ours}norm.", there)
        elif isinstance(layer, Projection):
            origins |= _both(f"{ours}norm.", names["project_norm"])
            origins |= _both(f"{ours}linear.", names["project"])
        elif isinstance(layer, PositionalConv):
            origins |= _both(ours, names["position"])
            origins[f"{ours}weight"] = _folded(names["position"])
        elif isinstance(layer, ChunkedTransformer):
            origins |= _both(f"{ours}norm.", names["norm"])
            for i in range(len(layer.layers)):
                origins |= _layer_origins(f"{ours}layers.{i}.", names, i)
    return origins


def _layer_origins(ours: str, names: dict[str, str], index: int) -> dict[str, Origin]:
    there = names["attention"].format(index)
    origins = _both(f"{ours}out_proj.", f"{there}.out_proj")
    for part in ("norm1", "linear1", "linear2", "norm2"):
        origins |= _both(f"{ours}{part}.", names[part].format(index))
    for part in ("weight", "bias"):
        origins[f"{ours}in_proj.{part}"] = _joined([f"{there}.{p}_proj.{part}" for p in "qkv"])
    return origins


def _both(ours: str, there: str) -> dict[str, Origin]:
    return {f"{ours}{part}": f"{there}.{part}" for part in ("weight", "bias")}


def _joined(names: list[str]) -> Callable[[Checkpoint], Tensor]:
    return lambda checkpoint: torch.cat([checkpoint.get(name) for name in names])


def _column(name: str) -> Callable[[Checkpoint], Tensor]:
    return lambda checkpoint: checkpoint.get(name)[:, None]


def _folded(name: str) -> Callable[[Checkpoint], Tensor]:
    return lambda checkpoint: checkpoint.folded(name)
