"""DAC: the Descript Audio Codec, 44.1, 24 and 16 kHz (Kumar et al., arXiv 2306.06546).

Audio, mono -> convolutions that halve the rate at each stage and look as far ahead as behind ->
latents, 50 to 86 a second -> residual codebooks of 1,024 entries in 8 dimensions, searched by
direction. Decoding mirrors it.

Layouts: the transformers folder (descript/dac_16khz, -24khz, -44khz), and what the package
descript-audio-codec fetches (weights_44khz_8kbps_0.0.1.pth), also under `model.` as Parler-TTS has
it. The latter say their sizes by their tensors only, and their sample rate not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.checkpoints.configs import whole_number
from streamenc.errors import CheckpointError
from streamenc.layers.linear import Linear
from streamenc.layers.quantize import FactorisedVQ
from streamenc.models.dac.blocks import DacNet, Layout, dac_decoder, dac_encoder, dac_origins
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

MAX_LEVELS, MAX_ENTRIES, MAX_RATE = 64, 1 << 16, 1 << 20
_BOOK = "quantizer.quantizers.{}.codebook.weight"
# The first layer of a side, and the layer of each stage that changes the rate: of stage 0, or 1 in
# the numbers of the original.
_FIRST: dict[Layout, dict[str, str]] = {
    "transformers": {"encoder": "encoder.conv1", "decoder": "decoder.conv1"},
    "original": {"encoder": "encoder.block.0", "decoder": "decoder.model.0"},
}
_STRIDES: dict[Layout, dict[str, str]] = {
    "transformers": {
        "encoder": "encoder.block.{0}.conv1",
        "decoder": "decoder.block.{0}.conv_t1",
    },
    "original": {
        "encoder": "encoder.block.{1}.block.4",
        "decoder": "decoder.model.{1}.block.1",
    },
}

# The published models, in the words of transformers' config.json.
PUBLISHED: dict[str, dict[str, Any]] = {
    "16khz": {"sampling_rate": 16_000, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12},
    "24khz": {"sampling_rate": 24_000, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32},
    "44khz": {"sampling_rate": 44_100, "downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9},
}
_DEFAULTS: dict[str, Any] = {
    "encoder_hidden_size": 64,
    "downsampling_ratios": [2, 4, 8, 8],
    "decoder_hidden_size": 1536,
    "n_codebooks": 9,
    "codebook_size": 1024,
    "codebook_dim": 8,
    "sampling_rate": 16_000,
}


class DacEncoder(Model):
    """Audio -> latents (batch, latent, frames); `after` quantises them.

    The last frame is filled up with zeros, as the published preprocessing does.
    """

    def __init__(self, net: DacNet, quantizer: FactorisedVQ, sample_rate: int) -> None:
        super().__init__()
        self.chain = dac_encoder(net)
        self.quantizer = quantizer
        self.latent = net.latent
        self.spec = StreamSpec(
            name="dac",
            input=Port("audio", Fraction(sample_rate), net.channels),
            output=Port("codes", Fraction(sample_rate, net.hop), quantizer.levels, "uint16"),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=quantizer.codebooks.shape[1],
            note="zeros fill the last frame, as in the published preprocessing",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.latent, 0), None
        if end:
            before = 0 if state is None else self.spec.lead  # and whole hops
            x = F.pad(x, (0, -(before + x.shape[-1]) % self.spec.hop))
        return self.chain.step(x, state, end=end)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        levels = None if codebooks is None else self.check_codebooks(codebooks)
        return self.quantizer.encode(y, levels)


class DacDecoder(Model):
    """Codes -> audio, a hop for each frame; any number of codebooks from 1 up, which may change.

    `before` looks entries up, (batch, levels * (dim + 1), frames), and `step` projects them: a
    product's last bits depend on how many frames it is given.
    """

    def __init__(self, net: DacNet, quantizer: FactorisedVQ, sample_rate: int) -> None:
        super().__init__()
        self.project = Linear(quantizer.joined_weight().shape[1], net.latent)
        self.chain = dac_decoder(net)
        self.quantizer = quantizer
        lost = self._lost(net)
        self.spec = StreamSpec(
            name="dac",
            input=Port("codes", Fraction(sample_rate, net.hop), quantizer.levels, "uint16"),
            output=Port("audio", Fraction(sample_rate), net.channels),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=quantizer.codebooks.shape[1],
            note=f"the sound ends {lost} samples before the last frame does" if lost else "",
        )

    def before(self, x: Signal) -> Tensor:
        codes = self.check_codes(super().before(x))
        return self.quantizer.vectors(codes).to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if state is None and not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), None
        latents = self.project(x.transpose(1, 2)).transpose(1, 2)
        return self.chain.step(latents, state, end=end)

    @staticmethod
    def _lost(net: DacNet) -> int:
        """Samples that the stream's last frame is short of: one position at each odd stride."""
        samples = 0
        for stride in net.decoder_strides:
            samples = samples * stride + (0 if net.output_padding else stride % 2)
        return samples


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of DAC's layouts."""
    return _layout(checkpoint.renamed(_as_published)) is not None


def published_spec(variant: str) -> StreamSpec:
    """What the published encoder promises: "16khz", "24khz" or "44khz"."""
    shape = _DacShape.of({**_DEFAULTS, **PUBLISHED[variant]})
    with torch.device("meta"):
        return DacEncoder(shape.net, shape.quantizer(), shape.sample_rate).spec


def load(name: str, checkpoint: Checkpoint, part: str) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them, sharing their codebooks."""
    checkpoint = checkpoint.renamed(_as_published)
    layout = _layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: its {len(checkpoint.names)} tensors are not named as in DAC "
            f"({_BOOK.format(0)}, and encoder.block.0.snake1.alpha or encoder.block.0.weight_v)"
        )
    try:
        bare = layout == "original" or not checkpoint.config
        config = _read_off(checkpoint, layout) if bare else checkpoint.config
        shape = _DacShape.of({**_DEFAULTS, **config})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.name}: its config cannot be used: {error}") from error
    with torch.device("meta"):
        quantizer = shape.quantizer()
    fill(quantizer, quantizer_origins(quantizer), checkpoint)
    checkpoint.check_used("quantizer.")
    encoder: Model | None = None
    decoder: Model | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = DacEncoder(shape.net, quantizer, shape.sample_rate)
        fill(encoder.chain, dac_origins(encoder.chain, "encoder", layout), checkpoint)
        checkpoint.check_used("encoder.")
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = DacDecoder(shape.net, quantizer, shape.sample_rate)
        fill(decoder.chain, dac_origins(decoder.chain, "decoder", layout), checkpoint)
        fill(decoder.project, {"weight": lambda _: quantizer.joined_weight()}, checkpoint)
        checkpoint.check_used("decoder.")
    return encoder, decoder


@dataclass(frozen=True, slots=True)
class _DacShape:
    """A config, checked."""

    net: DacNet
    sample_rate: int
    levels: int
    entries: int
    dim: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> _DacShape:
        """Raises ValueError or TypeError for a config that makes no sense."""
        down = tuple(config["downsampling_ratios"])
        up = tuple(config.get("upsampling_ratios") or down[::-1])
        latent = config.get("hidden_size") or config["encoder_hidden_size"] << len(down)
        net = DacNet(
            latent=latent,
            encoder_width=config["encoder_hidden_size"],
            encoder_strides=down,
            decoder_width=config["decoder_hidden_size"],
            decoder_strides=up,
        )
        sizes = {
            "sampling_rate": MAX_RATE,
            "n_codebooks": MAX_LEVELS,
            "codebook_size": MAX_ENTRIES,
            "codebook_dim": latent,
        }
        for key, most in sizes.items():
            whole_number(key, config[key], most)
        return cls(net, *(config[key] for key in sizes))

    def quantizer(self) -> FactorisedVQ:
        return FactorisedVQ(self.levels, self.entries, self.dim, self.net.latent)


def quantizer_origins(quantizer: FactorisedVQ) -> dict[str, Origin]:
    """Where the codebooks of the DAC family and their projections come from, in all layouts."""

    def stacked(read: Callable[[Checkpoint, str], Tensor]) -> Origin:
        places = [f"quantizer.quantizers.{level}" for level in range(quantizer.levels)]
        return lambda checkpoint: torch.stack([read(checkpoint, place) for place in places])

    def convolution(projection: str) -> Origin:
        return stacked(lambda c, place: c.folded(f"{place}.{projection}").squeeze(-1))

    return {
        "codebooks": stacked(lambda c, place: c.get(f"{place}.codebook.weight")),
        "into": convolution("in_proj"),
        "into_bias": stacked(lambda c, place: c.get(f"{place}.in_proj.bias")),
        "out_of": convolution("out_proj"),
        "out_of_bias": stacked(lambda c, place: c.get(f"{place}.out_proj.bias")),
    }


def _as_published(name: str) -> str:
    """A tensor's name without what another model puts before it."""
    return name.removeprefix("model.")


def _layout(checkpoint: Checkpoint) -> Layout | None:
    if _BOOK.format(0) not in checkpoint:
        return None
    if any(f"{side}.block.0.snake1.alpha" in checkpoint for side in ("encoder", "decoder")):
        return "transformers"
    if "encoder.block.0.bias" not in checkpoint:
        return "original" if "decoder.model.1.block.0.alpha" in checkpoint else None
    # SNAC's encoder, with the same names, has no activation behind its last stage.
    stages = len(_kernels(checkpoint, _STRIDES["original"]["encoder"]))
    return "original" if f"encoder.block.{stages + 1}.alpha" in checkpoint else None


def _read_off(checkpoint: Checkpoint, layout: Layout) -> dict[str, Any]:
    """The config of weights that come without one. Raises ValueError where they do not tell it."""
    first, strides = _FIRST[layout], _STRIDES[layout]
    down, up = ([kernel // 2 for kernel in _kernels(checkpoint, strides[s])] for s in strides)
    levels = 0
    while _BOOK.format(levels) in checkpoint:
        levels += 1
    entries, dim = checkpoint.shape(_BOOK.format(0))
    widths = _weight_shape(checkpoint, "quantizer.quantizers.0.out_proj")
    if not widths:
        raise ValueError("there is no quantizer.quantizers.0.out_proj")
    config = {
        "downsampling_ratios": down or up[::-1],
        "upsampling_ratios": up or down[::-1],
        "hidden_size": widths[0],
        "n_codebooks": levels,
        "codebook_size": entries,
        "codebook_dim": dim,
        "sampling_rate": checkpoint.config.get("sampling_rate"),
    }
    for side in strides:
        if f"{first[side]}.bias" in checkpoint:
            config[f"{side}_hidden_size"] = checkpoint.shape(f"{first[side]}.bias", 1)[0]
    told = ("downsampling_ratios", "n_codebooks")
    for published in PUBLISHED.values():
        if config["sampling_rate"] is None and all(config[k] == published[k] for k in told):
            config["sampling_rate"] = published["sampling_rate"]
    if config["sampling_rate"] is None:
        raise ValueError(
            f"strides of {config['downsampling_ratios']} with {levels} codebooks are of none of "
            'the published models; put a config.json beside it that has "model_type": "dac" and '
            'its "sampling_rate"'
        )
    return config


def _kernels(checkpoint: Checkpoint, place: str) -> list[int]:
    """Of the convolution at each stage that changes the rate."""
    kernels: list[int] = []
    while (shape := _weight_shape(checkpoint, place.format(len(kernels), len(kernels) + 1))) != ():
        kernels.append(shape[-1])
    return kernels


def _weight_shape(checkpoint: Checkpoint, place: str) -> tuple[int, ...]:
    """Of a layer, with weight normalisation or without; () where there is none."""
    for kind in ("weight", "weight_v", "parametrizations.weight.original1"):
        if f"{place}.{kind}" in checkpoint:
            return checkpoint.shape(f"{place}.{kind}", 1)
    return ()
