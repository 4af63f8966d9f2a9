"""The Cosmos tokenizers: video and images to latents or codes (NVIDIA, arXiv 2501.03575).

Video, frames of 3 colours -> Haar wavelet -> causal convolutions and attention -> a latent for the
first frame and one for each further 4 or 8 frames, on a grid of 8 x 8 or 16 x 16 pixels. CV models
give the 16 channels of their latents, DV models codes 0 to 63,999: the latents' 6 channels rounded
by FSQ. CI and DI do the same with each image alone. Decoding mirrors it.

What a user hands over and gets: video (batch, 3, time, height, width), floats in [-1, 1] or bytes;
latents (batch, 16, latents, height, width); codes (batch, 1, latents, height, width). Height and
width are multiples of 8 or 16, as the model's name says, and stay the same through a stream.

Attention along time sees all frames before, so exactness over any length needs memory that grows.
`mode` says what is given up:

    offline    Equals the published model over the whole clip. Memory for `limit` latents is
               reserved when the stream begins (4 MiB each at 256 x 256 pixels for the published
               8x8 models in float32); a longer stream is refused.
    window     Attention along time sees the last `context` latents, its own among them. Memory is
               flat, for streams without end. Equals the published model for so many latents.
    reference  Restarts every `clip` frames, as the published command does: each clip is encoded by
               itself, after all its frames are there.

The published models give a wrong last latent for lengths other than 1 + n * hop frames (hop: the 4
or 8 frames). Here a tail that is no whole hop is completed by repeating its last frame.

Layouts: diffusers' AutoencoderKLCosmos folders, and NVIDIA's TorchScript archives (encoder.jit,
decoder.jit, or autoencoder.jit), of which the parameters are read and nothing is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.fsq import FSQ
from streamenc.layers.streamed import Span
from streamenc.models.cosmos.network import (
    CosmosChain,
    CosmosNames,
    CosmosShape,
    Reach,
    Side,
    Stage,
    build,
)
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.models.videomodel import VideoModel, completed
from streamenc.spec import Equality, ImageSize, Port, Steps, StreamSpec
from streamenc.state import State

# Of the published DV and DI models, where an archive does not say it.
LEVELS = (8, 8, 8, 5, 5, 5)
MAX_LATENTS = 1 << 20
CLASS_NAME = "AutoencoderKLCosmos"
MODES: dict[str, Equality] = {"offline": "offline", "window": "window", "reference": "segment"}
_NOTES = {
    "offline": "up to {limit} latents",
    "window": "attention along time sees {context} latents",
    "reference": "restarts every {clip} frames",
}


@dataclass(frozen=True, slots=True)
class Mode:
    """How attention along time is bounded; see the module's text. `rate`: frames a second."""

    name: str = "offline"
    limit: int = 32
    context: int = 16
    clip: int = 17
    rate: Fraction = Fraction(24)

    def reach(self, temporal: int) -> Reach:
        """For so many frames a latent."""
        if self.name == "window":
            return Reach(self.context, growing=False)
        clip = 1 + (self.clip - 1) // temporal
        return Reach(clip if self.name == "reference" else self.limit, growing=True)

    def check(self, temporal: int) -> None:
        """Raises UsageError where `clip` is no length that the model has."""
        if self.name == "reference" and (self.clip - 1) % temporal:
            raise UsageError(
                f"clip={self.clip} frames; this model has clips of 1 + n * {temporal} frames: "
                "others would end in a wrong latent"
            )

    @property
    def note(self) -> str:
        return _NOTES[self.name].format(limit=self.limit, context=self.context, clip=self.clip)


class _CosmosModel(VideoModel):
    """What both sides have.

    State: that of the layers; in mode "reference" the number of clips, (batch,) int64.
    """

    chain: CosmosChain

    def __init__(self, shape: CosmosShape, mode: Mode) -> None:
        super().__init__()
        self.shape, self.mode = shape, mode
        self.chain = build(shape, mode.reach(shape.temporal))
        inside = self.chain.steps
        self._unit = inside.hop
        self._clip = 0  # input items of a clip, in mode "reference"
        if mode.name == "reference" and not shape.images:
            self._clip = mode.clip if shape.side == "encoder" else inside.inputs(mode.clip)

    @property
    def steps(self) -> Steps:
        inside = self.chain.steps
        if not self._clip:
            return inside
        outputs = inside.outputs(self._clip)
        return Steps(self._clip, self._clip, outputs, outputs)

    def reach(self, first: int, last: int) -> Span:
        if not self._clip:
            return self.chain.reach(first, last)
        size = self.steps.lead_out
        start = self.chain.reach(first % size, first % size)[0] or 0
        stop = self.chain.reach(last % size, last % size)[1]
        return first // size * self._clip + start, last // size * self._clip + stop

    def _spec(self, items: tuple[Port, Port], codebook_size: int) -> StreamSpec:
        mode, video = self.mode, not self.shape.images
        latents = mode.limit if mode.name == "offline" and video else 0
        return StreamSpec(
            name="cosmos",
            input=items[0],
            output=items[1],
            steps=self.steps,
            equality=MODES[mode.name],
            codebook_size=codebook_size,
            limit=1 + (latents - 1) * self._unit if latents else 0,
            receptive_field=self.receptive_field(),
            note=mode.note if video else "",
        )

    def frames(self, x: Tensor, state: State, *, end: bool) -> tuple[Tensor, State]:
        return self._clips(x, state) if self._clip else super().frames(x, state, end=end)

    def _clips(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Each clip as one more lane; a shorter last one by itself."""
        batch, time = x.shape[:2]
        count, rest = divmod(time, self._clip)
        outputs = []
        if count:
            clips = x[:, : time - rest].reshape(batch * count, self._clip, *x.shape[2:])
            y = self.chain(clips)
            outputs.append(y.reshape(batch, count * y.shape[1], *y.shape[2:]))
        if rest:
            outputs.append(self.chain(completed(x[:, time - rest :], (1 - rest) % self._unit)))
        past = state if isinstance(state, Tensor) else torch.zeros(batch, dtype=torch.int64)
        return torch.cat(outputs, dim=1), past.to(x.device) + count

    def first_input(self, item: int) -> Fraction:
        if not self._clip:
            return super().first_input(item)
        # Of each clip, the first latent is of one frame, and each other one of several.
        spec = self.spec
        clip, item = divmod(item, spec.lead_out)
        within = 1 + (item - 1) * Fraction(spec.lead - 1, spec.lead_out - 1) if item else 0
        return clip * spec.lead + Fraction(within)


class CosmosEncoder(_CosmosModel):
    """Video -> latents; `after` rounds them to codes where the model has codes."""

    def __init__(self, shape: CosmosShape, mode: Mode, fsq: FSQ | None) -> None:
        super().__init__(shape, mode)
        self.fsq = fsq
        self.shrinks = shape.spatial
        ports = (_video(mode, ImageSize(shape.spatial)), _latents(shape, mode, fsq))
        self.spec = self._spec(ports, fsq.entries if fsq else 0)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        if codebooks is not None:
            self.check_codebooks(codebooks)
        return y if self.fsq is None else self.fsq.encode(y)

    @property
    def width(self) -> int:
        return self.shape.embedding


class CosmosDecoder(_CosmosModel):
    """Latents or codes -> video."""

    def __init__(self, shape: CosmosShape, mode: Mode, fsq: FSQ | None) -> None:
        super().__init__(shape, mode)
        self.fsq = fsq
        self.grows, self.holds = shape.spatial, "codes" if fsq else "latents"
        ports = (_latents(shape, mode, fsq), _video(mode))
        self.spec = self._spec(ports, fsq.entries if fsq else 0)

    def before(self, x: Signal) -> Tensor:
        x = super().before(x)
        if self.fsq is None:
            return x
        return self.fsq.decode(self.check_entries(x)).to(self.like.dtype)


def _video(mode: Mode, image: ImageSize | None = None) -> Port:
    return Port("video", mode.rate, 3, axes=2, image=image)


def _latents(shape: CosmosShape, mode: Mode, fsq: FSQ | None) -> Port:
    rate = mode.rate / shape.temporal
    if mode.name == "reference" and not shape.images:
        rate = mode.rate * (1 + (mode.clip - 1) // shape.temporal) / mode.clip
    if fsq is not None:
        return Port("codes", rate, 1, "uint16" if fsq.entries <= 1 << 16 else "uint32", axes=2)
    return Port("features", rate, shape.embedding, axes=2)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return CosmosNames.of(checkpoint) is not None


def published_spec(variant: str) -> StreamSpec:
    """What a published encoder promises: "CV8x8x8", "DI16x16", ..."""
    kind, *factors = variant.split("x")
    images = kind[1] == "I"
    spatial, temporal = int(factors[-1]), 1 if images else int(kind[2:])
    widths = ((128, 256), (256, 512), (512, 512))
    stages = tuple(
        Stage(((a, b), (b, b)), False, space=8 << i <= spatial, time=8 << i <= temporal)
        for i, (a, b) in enumerate(widths)
    )
    codes = kind[0] == "D"
    shape = CosmosShape("encoder", images, 4, 128, stages, 16, len(LEVELS) if codes else 16)
    with torch.device("meta"):
        return CosmosEncoder(shape, Mode(), FSQ(LEVELS) if codes else None).spec


def _mode(mode: Any, limit: Any, context: Any, clip: Any, rate: Any) -> Mode:
    """Raises UsageError for options that make no sense."""
    mode = options.choice("mode", mode, MODES)
    limit = options.integer("limit", limit, 1, MAX_LATENTS)
    context = options.integer("context", context, 1, MAX_LATENTS)
    clip = options.integer("clip", clip, 1, MAX_LATENTS)
    return Mode(mode, limit, context, clip, options.rate("rate", rate))


def _factors(factors: Any, checkpoint: Checkpoint) -> tuple[int, int]:
    """Frames and pixels to a latent. Raises UsageError where nobody says them."""
    published = re.findall(r"[CD]V(\d+x\d+x\d+)", checkpoint.name)
    said = published[-1] if factors is None and published else factors
    numbers = re.fullmatch(r"(\d+)x(\d+)x(\d+)", said) if isinstance(said, str) else None
    if numbers is None or numbers[2] != numbers[3]:
        raise UsageError(
            f"{checkpoint.name} does not say by which factors it shrinks video (factors={said!r}): "
            "give factors='8x8x8' (frames, height, width), or keep the published name, such as "
            "Cosmos-0.1-Tokenizer-CV8x8x8, in its path"
        )
    return int(numbers[1]), int(numbers[2])


def _numbers(levels: Any) -> tuple[int, ...]:
    """Numbers, or their text with commas. Raises UsageError."""
    parts = levels.split(",") if isinstance(levels, str) else levels
    return tuple(options.integer("levels", part, 0, 1 << 16) for part in parts)


def _side(
    checkpoint: Checkpoint,
    names: CosmosNames,
    side: Side,
    mode: Mode,
    levels: Sequence[int] | None,
    factors: tuple[int, int] | None,
) -> tuple[CosmosShape, Mode, FSQ | None]:
    shape = CosmosShape.of(checkpoint, names, side, factors)
    if factors is not None and factors != (shape.temporal, shape.spatial):
        raise UsageError(
            f"factors {factors[0]}x{factors[1]}x{factors[1]} cannot be those of a {side} of "
            f"{len(shape.stages)} stages on patches of {shape.patch} pixels"
        )
    if shape.images and mode.name != "offline":
        raise UsageError(f"mode={mode.name!r} is for video; this model takes each image alone")
    mode.check(shape.temporal)
    for stored in ("quantizer._levels", "inv_quant.quantizer._levels"):
        if levels is None and stored in checkpoint:
            levels = checkpoint.stored(stored).flatten().tolist()
    if shape.embedding == shape.latent and levels is None:
        return shape, mode, None
    levels = LEVELS if levels is None else levels
    levels = _numbers(levels)
    if len(levels) != shape.embedding or min(levels, default=2) < 2:
        raise UsageError(
            f"levels={list(levels)}; the latents of this model have {shape.embedding} channels: "
            "wanted so many numbers from 2 up"
        )
    return shape, mode, FSQ(levels)


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    mode: str = "offline",
    limit: int = 32,
    context: int = 16,
    clip: int = 17,
    rate: Any = 24,
    levels: Sequence[int] | None = None,
    factors: str | None = None,
) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them.

    mode     "offline", "window" or "reference"; see the module's text. Images have no modes.
    limit    Latents that a stream in mode "offline" may have at most.
    context  Latents that attention along time sees in mode "window".
    clip     Frames after which mode "reference" restarts.
    rate     Frames a second of the video, for times alone.
    levels   Of a model with codes, the lowest digit first; the published ones where None.
    factors  Frames, height and width to a latent, "8x16x16", for NVIDIA's archives of video models,
             which do not say; None takes them from the name or path, where it has one of the
             published names ("CV8x16x16").
    """
    names = CosmosNames.of(checkpoint)
    if names is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is the first layer of "
            "a Cosmos tokenizer"
        )
    how = _mode(mode, limit, context, clip, rate)
    shrunk = _factors(factors, checkpoint) if names.layout == "video" else None
    encoder: CosmosEncoder | None = None
    decoder: CosmosDecoder | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = CosmosEncoder(*_side(checkpoint, names, "encoder", how, levels, shrunk))
        fill(encoder.chain, encoder.chain.origins(names), checkpoint)
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = CosmosDecoder(*_side(checkpoint, names, "decoder", how, levels, shrunk))
        fill(decoder.chain, decoder.chain.origins(names), checkpoint)
    return encoder, decoder
