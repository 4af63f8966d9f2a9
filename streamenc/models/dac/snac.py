"""SNAC: a codec whose codebooks have different rates, 24, 32 and 44.1 kHz (Siuzdak, Gruenwald and
Lanzendoerfer, arXiv 2410.14411).

Audio, mono -> the convolutions of DAC, depthwise -> at 32 and 44.1 kHz attention within 32 frames
-> residual codebooks of 4,096 entries, the first of which codes the mean over 4 or 8 frames, the
next over half as many, and the last each frame. Decoding mirrors it, and adds noise.

Layout: the folder that the package snac reads (hubertsiuzdak/snac_24khz, -32khz, -44khz): its
config.json and pytorch_model.bin, or safetensors of the same names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.checkpoints.configs import whole_number
from streamenc.errors import CheckpointError
from streamenc.layers.linear import Linear
from streamenc.layers.quantize import FactorisedVQ
from streamenc.layers.streamed import Chain, Span
from streamenc.models.dac.blocks import DacNet
from streamenc.models.dac.dac import quantizer_origins
from streamenc.models.dac.snacnet import (
    PRIME,
    NoiseKind,
    Regroup,
    SnacNet,
    snac_decoder,
    snac_encoder,
    snac_origins,
    tree,
)
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.options import choice, integer
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

LAYOUTS, NOISES = ("frames", "groups"), ("seeded", "zero")
_BOOK = "quantizer.quantizers.0.codebook.weight"

# The published models, in the words of their config.json.
_MUSIC: dict[str, Any] = {
    "encoder_dim": 64,
    "encoder_rates": [2, 3, 8, 8],
    "decoder_dim": 1536,
    "decoder_rates": [8, 8, 3, 2],
    "attn_window_size": 32,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [8, 4, 2, 1],
    "noise": True,
    "depthwise": True,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "24khz": {
        **_MUSIC,
        "sampling_rate": 24_000,
        "encoder_dim": 48,
        "encoder_rates": [2, 4, 8, 8],
        "decoder_dim": 1024,
        "decoder_rates": [8, 8, 4, 2],
        "attn_window_size": None,
        "vq_strides": [4, 2, 1],
    },
    "32khz": {**_MUSIC, "sampling_rate": 32_000},
    "44khz": {**_MUSIC, "sampling_rate": 44_100},
}

# What the package takes where a config says nothing.
_DEFAULTS = {
    **_MUSIC,
    "sampling_rate": 44_100,
    "encoder_rates": [3, 3, 7, 7],
    "decoder_rates": [7, 7, 3, 3],
}


@dataclass(frozen=True, slots=True)
class _SnacShape:
    """A config, checked.

    layout  Of codes. "frames": a row for each codebook, in which a code stands at each frame that
            it is of. "groups": a column for each group of frames, with each of its codes once, in
            the order of `tree`.
    """

    net: SnacNet
    strides: tuple[int, ...]
    entries: int
    dim: int
    sample_rate: int
    layout: str

    @classmethod
    def of(cls, config: dict[str, Any], layout: str) -> _SnacShape:
        """Raises ValueError, TypeError or LookupError for a config that makes no sense."""
        down = tuple(config["encoder_rates"])
        width = whole_number("encoder_dim", config["encoder_dim"], 1 << 16)
        latent = config.get("latent_dim") or width << len(down)
        if latent != width << len(down):
            raise ValueError(f"latent_dim is {latent!r}; wanted {width << len(down)}, or null")
        strides = tuple(config["vq_strides"])
        if not 1 <= len(strides) <= 16 or any(type(n) is not int or n < 1 for n in strides):
            raise ValueError(f"vq_strides are {strides!r:.80}; wanted 1 to 16 numbers from 1 up")
        if strides[0] > 64 or strides[-1] != 1:
            raise ValueError(f"vq_strides are {strides}; wanted the first up to 64, the last 1")
        if any(one % next_ for one, next_ in zip(strides, strides[1:], strict=False)):
            raise ValueError(f"vq_strides are {strides}; wanted each a multiple of the next")
        for key in ("noise", "depthwise"):
            if type(config[key]) is not bool:
                raise ValueError(f"{key} is {config[key]!r}; wanted true or false")
        shape = DacNet(
            latent=latent,
            encoder_width=width,
            encoder_strides=down,
            decoder_width=config["decoder_dim"],
            decoder_strides=tuple(config["decoder_rates"]),
            output_padding=True,
        )
        window = config["attn_window_size"]
        return cls(
            SnacNet(
                shape,
                config["depthwise"],
                config["noise"],
                0 if window is None else whole_number("attn_window_size", window, 4096),
                strides[0],
            ),
            strides,
            whole_number("codebook_size", config["codebook_size"], 1 << 16),
            whole_number("codebook_dim", config["codebook_dim"], latent),
            whole_number("sampling_rate", config["sampling_rate"], 1 << 20),
            layout,
        )

    @property
    def group(self) -> int:
        """Frames in an item of codes."""
        return self.net.group if self.layout == "groups" else 1

    @property
    def places(self) -> list[tuple[int, int]]:
        """(level, which of the level's codes in an item), for each row of codes."""
        if self.layout == "groups":
            return tree(self.strides)
        return [(level, 0) for level in range(len(self.strides))]

    @property
    def codes(self) -> Port:
        rate = Fraction(self.sample_rate, self.net.shape.hop * self.group)
        return Port("codes", rate, len(self.places), "uint16")

    @property
    def audio(self) -> Port:
        return Port("audio", Fraction(self.sample_rate), self.net.shape.channels)

    def quantizer(self) -> FactorisedVQ:
        return FactorisedVQ(
            len(self.strides),
            self.entries,
            self.dim,
            self.net.shape.latent,
            strides=self.strides,
        )


class SnacEncoder(Model):
    """Audio -> latents (batch, latent * frames of an item, items); `after` quantises them.

    Zeros fill the last group, as the published preprocessing does.
    """

    def __init__(self, shape: _SnacShape, quantizer: FactorisedVQ) -> None:
        super().__init__()
        self.chain = snac_encoder(shape.net)
        self.quantizer = quantizer
        self.latent, self.group, self.places = shape.net.shape.latent, shape.group, shape.places
        self.spec = StreamSpec(
            name="snac",
            input=shape.audio,
            output=shape.codes,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=shape.entries,
            note="zeros fill the last group of frames, as in the published preprocessing",
        )

    @property
    def steps(self) -> Steps:
        inner = self.chain.steps
        return Steps(
            inner.lead, inner.hop, inner.lead_out // self.group, inner.hop_out // self.group
        )

    def reach(self, first: int, last: int) -> Span:
        return self.chain.reach(first * self.group, (last + 1) * self.group - 1)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.latent * self.group, 0), None
        if end:
            before = 0 if state is None else self.spec.lead  # and whole hops
            x = F.pad(x, (0, -(before + x.shape[-1]) % self.spec.hop))
        y, state = self.chain.step(x, state, end=end)
        groups = y.reshape(*y.shape[:2], y.shape[2] // self.group, self.group)
        return groups.transpose(2, 3).flatten(1, 2), state

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        rows = self.places if codebooks is None else self.places[: self.check_codebooks(codebooks)]
        batch, _, items = y.shape
        latents = y.reshape(batch, self.latent, self.group, items).transpose(2, 3).flatten(2)
        levels = 1 + max(level for level, _ in rows)
        codes = self.quantizer.encode(latents, levels).reshape(batch, levels, items, self.group)
        strides = self.quantizer.strides
        # In a column of its own a code stands at its first frame, else at each.
        wanted = [codes[:, level, :, i * strides[level] % self.group] for level, i in rows]
        return torch.stack(wanted, dim=1)


class SnacDecoder(Model):
    """Codes -> audio; any number of rows of codes from 1 up, which may change at any item.

    `before` looks entries up, (batch, rows * (dim + 1), items), of each row its entry and a 1;
    `step` brings them to frames and projects them.
    """

    def __init__(
        self, shape: _SnacShape, quantizer: FactorisedVQ, kind: NoiseKind, seed: int
    ) -> None:
        super().__init__()
        self.project = Linear(quantizer.joined_weight().shape[1], shape.net.shape.latent)
        network = snac_decoder(shape.net, kind, seed)
        # Attention takes whole windows: of groups that do not end with one, some frames wait.
        together = math.gcd(shape.group, network.steps.hop)
        self.chain = Chain([Regroup(1, -network.steps.lead % together), network])
        self.quantizer = quantizer
        self.group, self.places = shape.group, shape.places
        note = {
            "seeded": f"the decoder's noise is that of seed {seed}; the published one draws it",
            "zero": "without the noise that the published decoder draws",
        }
        self.spec = StreamSpec(
            name="snac",
            input=shape.codes,
            output=shape.audio,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=shape.entries,
            note=note[kind] if shape.net.noise else "",
        )

    @property
    def network(self) -> Chain:
        network = self.chain.layers[1]
        assert isinstance(network, Chain)
        return network

    @property
    def _ungrouped(self) -> Steps:
        return Steps(lead_out=self.group, hop_out=self.group)

    @property
    def steps(self) -> Steps:
        return self._ungrouped.then(self.chain.steps)

    def reach(self, first: int, last: int) -> Span:
        start, stop = self.chain.reach(first, last)
        return (start or 0) // self.group, stop // self.group

    def before(self, x: Signal) -> Tensor:
        codes = self.check_codes(super().before(x))
        batch, given, items = codes.shape
        dim = self.quantizer.codebooks.shape[2]
        y = self.quantizer.codebooks.new_zeros(batch, len(self.places), dim + 1, items)
        for row, (level, _) in enumerate(self.places[:given]):
            entries = F.embedding(codes[:, row], self.quantizer.codebooks[level])
            y[:, row, :dim] = entries.transpose(1, 2)
            y[:, row, dim] = 1
        return y.flatten(1, 2).to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), None
        latents = self.project(self._frames(x).transpose(1, 2)).transpose(1, 2)
        return self.chain.step(latents, state, end=end)

    def _frames(self, x: Tensor) -> Tensor:
        """(batch, rows * (dim + 1), items) -> (batch, levels * (dim + 1), frames)."""
        if self.group == 1:
            return x
        batch, channels, items = x.shape
        rows = x.reshape(batch, len(self.places), channels // len(self.places), items)
        found = []
        for level in range(self.quantizer.levels):
            # A level's codes lie in order of time among the rows of a group.
            of_level = [row for row, (other, _) in enumerate(self.places) if other == level]
            codes = torch.stack([rows[:, row] for row in of_level], dim=-1)
            found.append(codes.repeat_interleave(self.group // len(of_level), dim=-1).flatten(2))
        return torch.cat(found, dim=1)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are SNAC's: DAC's, without an activation before the latents."""
    if _BOOK not in checkpoint:
        return False
    if "encoder.block.0.bias" not in checkpoint:
        return "decoder.model.1.bias" in checkpoint
    stages = 0
    while f"encoder.block.{stages + 1}.block.3.alpha" in checkpoint:
        stages += 1
    return stages > 0 and f"encoder.block.{stages + 1}.alpha" not in checkpoint


def published_spec(variant: str) -> StreamSpec:
    """What the published encoder promises: "24khz", "32khz" or "44khz"."""
    shape = _SnacShape.of(PUBLISHED[variant], "frames")
    with torch.device("meta"):
        return SnacEncoder(shape, shape.quantizer()).spec


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    layout: str = "frames",
    noise: str = "seeded",
    seed: int = 0,
) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them, sharing their codebooks.

    layout  "frames": a row for each codebook, whose codes are repeated at each frame that they are
            of. "groups": each group of frames in one column, with each of its codes once.
    noise   "seeded" adds the noise that the seed gives, whatever the chunks; "zero" none.
    seed    Of the noise.
    """
    layout = choice("layout", layout, LAYOUTS)
    kind: NoiseKind = "zero" if choice("noise", noise, NOISES) == "zero" else "seeded"
    seed = integer("seed", seed, 0, PRIME - 1)
    if not recognises(checkpoint):
        raise CheckpointError(
            f"{checkpoint.name}: its {len(checkpoint.names)} tensors are not named as in SNAC "
            f"({_BOOK}, encoder.block.1.block.3.alpha, ...)"
        )
    if not checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.name}: wanted SNAC's config.json too, which tells its sample rate and "
            "the rates of its codebooks: name the folder that has both"
        )
    try:
        shape = _SnacShape.of({**_DEFAULTS, **checkpoint.config}, layout)
    except (TypeError, ValueError, LookupError) as error:
        raise CheckpointError(f"{checkpoint.name}: its config cannot be used: {error}") from error
    with torch.device("meta"):
        quantizer = shape.quantizer()
    fill(quantizer, quantizer_origins(quantizer), checkpoint)
    checkpoint.check_used("quantizer.")
    encoder: Model | None = None
    decoder: Model | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = SnacEncoder(shape, quantizer)
        fill(encoder.chain, snac_origins(encoder.chain, "encoder"), checkpoint)
        checkpoint.check_used("encoder.")
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = SnacDecoder(shape, quantizer, kind, seed)
        fill(network := decoder.network, snac_origins(network, "decoder"), checkpoint)
        fill(decoder.project, {"weight": lambda _: quantizer.joined_weight()}, checkpoint)
        checkpoint.check_used("decoder.")
    return encoder, decoder
