"""Qwen3-TTS-Tokenizer-12Hz: speech codec of 12.5 frames a second, 16 codebooks of 2,048 entries
(Qwen team; Qwen3-TTS report, arXiv 2601.15621).

Audio, 24 kHz mono -> the encoder of Mimi, of whose 32 codebooks the first 16 are taken -> codes.
Codes -> entries of one semantic and 15 acoustic codebooks -> causal convolution -> transformer
over the last 72 frames -> ConvNeXt at 25 and 50 Hz -> four causal stages with Snake activations ->
audio, 1920 samples a frame. All of it is causal: nothing waits for what comes later.

Layout: the transformers folder, `encoder.*` as MimiModel has it and `decoder.*`; it is also the
folder speech_tokenizer of the Qwen3-TTS models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.checkpoints.configs import MAX_SIZE, whole_number, whole_numbers
from streamenc.errors import CheckpointError
from streamenc.layers.activation import SnakeBeta
from streamenc.layers.attention.sliding import Transformer
from streamenc.layers.conv.causal import CausalConv1d, CausalConvTranspose1d
from streamenc.layers.conv.convnext import ConvNeXt
from streamenc.layers.linear import Linear
from streamenc.layers.quantize import ResidualVQ
from streamenc.layers.streamed import Chain, Residual
from streamenc.models import mimi
from streamenc.models.mimi import MimiEncoder, MimiShape, SplitDecoder
from streamenc.models.model import Model
from streamenc.options import choice
from streamenc.spec import Port, StreamSpec

FAMILY = "qwen3_tts_tokenizer_12hz"
MAX_LAYERS = 1 << 8
DILATIONS = (1, 3, 9)

# What a config leaves out is what the published configuration class has; the published model's own
# config says more, and is taken where there is none.
_DEFAULTS: dict[str, Any] = {
    "codebook_size": 2048,
    "codebook_dim": 512,
    "latent_dim": 1024,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "sliding_window": 72,
    "num_quantizers": 16,
    "decoder_dim": 1536,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "upsample_rates": [8, 5, 4, 3],
    "upsampling_ratios": [2, 2],
}
_PUBLISHED = {"hidden_size": 512, "head_dim": 64, "intermediate_size": 1024}
_SIZES = (
    *("codebook_size", "codebook_dim", "latent_dim", "hidden_size", "num_attention_heads"),
    *("intermediate_size", "sliding_window", "decoder_dim"),
)
# What would compute something else.
_ONLY = {"attention_bias": False, "hidden_act": "silu", "num_semantic_quantizers": 1}


class _Shape:
    """A config, checked, with the parts that the encoder and the decoder are made of."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for a config that makes no sense, or another model."""
        given = config.get("decoder_config")
        c = {**_DEFAULTS, **(_PUBLISHED if given is None else given)}
        rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(f"rope_parameters are {rope!r}; only 'default' ones are known")
        c["rope_theta"] = rope.get("rope_theta", c["rope_theta"])
        _check_decoder(c)
        self.c = c
        self.hop = math.prod((*c["upsample_rates"], *c["upsampling_ratios"]))
        books = config.get("encoder_valid_num_quantizers", 16)
        encoder = config.get("encoder_config") or {}
        beyond = encoder.get("num_quantizers", 32)
        if type(beyond) is not int or type(books) is not int or not books <= beyond:
            raise ValueError(f"encoder_valid_num_quantizers is {books!r} of {beyond!r}")
        self.encoder = MimiShape({**encoder, "num_quantizers": books}, FAMILY)
        self._check_sides(config)
        self.audio = Port("audio", Fraction(self.encoder.c["sampling_rate"]), 1)
        self.codes = self.encoder.codes

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Shape:
        """Raises CheckpointError."""
        try:
            return cls(checkpoint.config)
        except (AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.name}: its config cannot be used: {error}"
            ) from error

    def _check_sides(self, config: dict[str, Any]) -> None:
        """Whether the two sides speak of the same codes and samples. Raises ValueError."""
        c, e = self.c, self.encoder.c
        pairs = {
            "encode_downsample_rate": (
                config.get("encode_downsample_rate", 1920),
                self.encoder.hop,
            ),
            "decode_upsample_rate": (config.get("decode_upsample_rate", 1920), self.hop),
            "samples of a frame, encoded and decoded,": (self.encoder.hop, self.hop),
            "input_sample_rate": (config.get("input_sample_rate", 24_000), e["sampling_rate"]),
            "output_sample_rate": (config.get("output_sample_rate", 24_000), e["sampling_rate"]),
            "codebooks, encoded and decoded,": (e["num_quantizers"], c["num_quantizers"]),
            "codebook_size": (e["codebook_size"], c["codebook_size"]),
            "num_semantic_quantizers": (e["num_semantic_quantizers"], 1),
            "audio_channels": (e["audio_channels"], 1),
        }
        for what, (one, other) in pairs.items():
            if one != other:
                raise ValueError(f"{what}: {one!r} does not go with {other!r}")

    def quantizers(self) -> list[ResidualVQ]:
        """The decoder's semantic one and the acoustic one."""
        c = self.c
        books = c["num_quantizers"]
        return [
            ResidualVQ(levels, c["codebook_size"], c["codebook_dim"] // 2)
            for levels in (1, books - 1)
        ]

    def transformer(self) -> Transformer:
        c = self.c
        return Transformer(
            c["hidden_size"],
            c["num_attention_heads"],
            c["intermediate_size"],
            c["num_hidden_layers"],
            c["sliding_window"],
            max_step=1,
            rope_theta=c["rope_theta"],
            norm_eps=c["rms_norm_eps"],
            head_dim=c["head_dim"],
            norm="rms",
            gated=True,
            final=True,
        )

    def decoder_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The decoder's layers behind its codebooks, with the published name of each."""
        c = self.c
        latent, hidden, width = c["latent_dim"], c["hidden_size"], c["decoder_dim"]
        yield "pre_conv.conv", CausalConv1d(c["codebook_dim"], latent, 3)
        yield "pre_transformer.input_proj", CausalConv1d(latent, hidden, 1)
        yield "pre_transformer", self.transformer()
        yield "pre_transformer.output_proj", CausalConv1d(hidden, latent, 1)
        for index, ratio in enumerate(c["upsampling_ratios"]):
            there = f"upsample.{index}"
            yield f"{there}.0.conv", CausalConvTranspose1d(latent, latent, ratio, ratio)
            block = ConvNeXt(latent, 4 * latent, norm_eps=1e-6, quick=False, bias=True, scaled=True)
            yield f"{there}.1", block
        yield "decoder.0.conv", CausalConv1d(latent, width, 7)
        for index, rate in enumerate(c["upsample_rates"], start=1):
            there, narrow = f"decoder.{index}.block", c["decoder_dim"] >> index
            yield f"{there}.0", SnakeBeta(width)
            yield f"{there}.1.conv", CausalConvTranspose1d(width, narrow, 2 * rate, rate)
            width = narrow
            for unit, dilation in enumerate(DILATIONS, start=2):
                yield f"{there}.{unit}", _residual(width, dilation)
        last = 1 + len(c["upsample_rates"])
        yield f"decoder.{last}", SnakeBeta(width)
        yield f"decoder.{last + 1}.conv", CausalConv1d(width, 1, 7)
        yield "", nn.Hardtanh()  # within [-1, 1]


def _residual(width: int, dilation: int) -> Residual:
    first, second = CausalConv1d(width, width, 7, dilation=dilation), CausalConv1d(width, width, 1)
    return Residual(Chain([SnakeBeta(width), first, SnakeBeta(width), second]))


def _check_decoder(c: dict[str, Any]) -> None:
    """Raises ValueError. Puts in the size of the heads, where it is left out."""
    most = dict.fromkeys(_SIZES, MAX_SIZE)
    most |= {"num_hidden_layers": MAX_LAYERS, "num_quantizers": MAX_LAYERS}
    for key, high in most.items():
        whole_number(key, c[key], high)
    heads = c["num_attention_heads"]
    for key, wanted in {**_ONLY, "num_key_value_heads": heads}.items():
        if c.get(key, wanted) != wanted:
            raise ValueError(f"{key} is {c[key]!r}; only {wanted!r} is known")
    size = c.setdefault("head_dim", c["hidden_size"] // heads)
    if type(size) is not int or size % 2 or not 0 < heads * size <= MAX_SIZE:
        raise ValueError(
            f"{heads} heads of {size!r}; wanted even ones, {MAX_SIZE} channels at most"
        )
    for key, top in (("rms_norm_eps", 1.0), ("rope_theta", 1e12)):
        if type(c[key]) not in (int, float) or not 0 < c[key] <= top:
            raise ValueError(f"{key} is {c[key]!r}; wanted a number above 0, up to {top:g}")
    for key in ("upsample_rates", "upsampling_ratios"):
        whole_numbers(key, c[key])
    if math.prod((*c["upsample_rates"], *c["upsampling_ratios"])) > MAX_SIZE:
        raise ValueError(f"a frame of more than {MAX_SIZE} samples")
    halvings = len(c["upsample_rates"])
    if c["codebook_dim"] % 2 or c["num_quantizers"] < 2 or not c["decoder_dim"] >> halvings:
        raise ValueError(
            f"codebook_dim {c['codebook_dim']}, {c['num_quantizers']} codebooks, decoder_dim "
            f"{c['decoder_dim']}; wanted an even one, 2 or more, and one to halve {halvings} times"
        )


class Qwen3TTSDecoder(SplitDecoder):
    """Codes -> 24 kHz audio in [-1, 1], 1920 samples a frame."""

    def __init__(self, shape: _Shape) -> None:
        super().__init__()
        dim = shape.c["codebook_dim"]
        self.semantic, self.acoustic = shape.quantizers()
        self.project = Linear(dim, dim, rows=1)
        self.chain = Chain(layer for _, layer in shape.decoder_layers())
        self.spec = StreamSpec(
            name=FAMILY,
            input=shape.codes,
            output=shape.audio,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=shape.c["codebook_size"],
            note="in one pass; the published code starts anew every 300 frames",
        )


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of the tokenizer."""
    return "decoder.pre_conv.conv.weight" in checkpoint and (
        "decoder.quantizer.rvq_first.output_proj.weight" in checkpoint
    )


def published_spec(variant: str) -> StreamSpec:
    """What the published encoder promises; it has no variants."""
    with torch.device("meta"):
        return MimiEncoder(_Shape({}).encoder, "transformers").spec


def load(
    name: str, checkpoint: Checkpoint, part: str, *, tail: str = "transformers"
) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them.

    tail  What ends a stream that fills no frame: "transformers", as published, pads the input of
          each convolution, "moshi" the waveform, as a clip in a batch of longer ones is.
    """
    tail = choice("tail", tail, mimi.TAILS)
    shape = _Shape.of(checkpoint)
    encoder: MimiEncoder | None = None
    decoder: Qwen3TTSDecoder | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = MimiEncoder(shape.encoder, tail)
        own = _side(checkpoint, "encoder")
        fill(
            encoder, mimi.mimi_origins(encoder, shape.encoder, "transformers", "encoder", own), own
        )
        own.check_used("", besides=("decoder.", "quantizer."))
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = Qwen3TTSDecoder(shape)
        own = _side(checkpoint, "decoder")
        fill(decoder, _decoder_origins(decoder, shape), own)
        own.check_used("", besides=("encoder.", "quantizer.rvq_"))
    return encoder, decoder


def _side(checkpoint: Checkpoint, part: str) -> Checkpoint:
    """The same tensors, those of one part by the names that they have in it."""
    return checkpoint.renamed(lambda name: name.removeprefix(f"{part}."))


def _decoder_origins(model: Qwen3TTSDecoder, shape: _Shape) -> dict[str, Origin]:
    """Where each parameter comes from."""
    origins: dict[str, Origin] = {"project.weight": partial(mimi.projections, layout="original")}
    for kind, quantizer in (("semantic", model.semantic), ("acoustic", model.acoustic)):
        origins |= mimi.quantizer_origins(quantizer, kind, "original")
    with torch.device("meta"):
        names = [name for name, _ in shape.decoder_layers()]
    for index, (there, layer) in enumerate(zip(names, model.chain.layers, strict=True)):
        origins |= {
            f"chain.layers.{index}.{ours}": origin for ours, origin in _origins(there, layer)
        }
    return origins


def _origins(there: str, layer: nn.Module) -> Iterator[tuple[str, Origin]]:
    """Where each parameter of a layer comes from, of which `there` is the published name."""
    if isinstance(layer, Residual):
        for index, name in enumerate(("act1", "conv1.conv", "act2", "conv2.conv")):
            assert isinstance(layer.block, Chain)
            for ours, origin in _origins(f"{there}.{name}", layer.block.layers[index]):
                yield f"block.layers.{index}.{ours}", origin
    elif isinstance(layer, ConvNeXt):
        names = {"depthwise": "dwconv.conv", "norm": "norm", "up": "pwconv1", "down": "pwconv2"}
        for ours, name in names.items():
            yield from ((f"{ours}.{p}", f"{there}.{name}.{p}") for p in ("weight", "bias"))
        yield "scale", f"{there}.gamma"
    elif isinstance(layer, Transformer):
        yield "norm.weight", f"{there}.norm.weight"
        for index in range(len(layer.layers)):
            for ours, origin in _transformer_origins(f"{there}.layers.{index}").items():
                yield f"layers.{index}.{ours}", origin
    elif "_proj" in there:
        yield "weight", _pointwise(f"{there}.weight")
        yield "bias", f"{there}.bias"
    else:
        yield from ((p, f"{there}.{p}") for p, _ in layer.named_parameters())


def _transformer_origins(there: str) -> dict[str, Origin]:
    attention, fed = f"{there}.self_attn", f"{there}.mlp"
    return {
        "norm1.weight": f"{there}.input_layernorm.weight",
        "in_proj.weight": mimi.joined([f"{attention}.{p}_proj.weight" for p in "qkv"]),
        "out_proj.weight": f"{attention}.o_proj.weight",
        "scale1": f"{there}.self_attn_layer_scale.scale",
        "norm2.weight": f"{there}.post_attention_layernorm.weight",
        "linear1.weight": mimi.joined([f"{fed}.{p}_proj.weight" for p in ("gate", "up")]),
        "linear2.weight": f"{fed}.down_proj.weight",
        "scale2": f"{there}.mlp_layer_scale.scale",
    }


def _pointwise(name: str) -> Callable[[Checkpoint], Tensor]:
    """A linear layer's weight as that of a convolution."""
    return lambda checkpoint: checkpoint.get(name).unsqueeze(-1)
