"""Mimi: speech codec of 12.5 frames a second, 80 ms each (Kyutai; Moshi report, arXiv 2410.00037).

Audio, 24 kHz mono -> SEANet (25 Hz) -> transformer over the last 250 positions -> stride 2 (12.5
Hz) -> one semantic and up to 31 acoustic codebooks of 2,048 entries, both quantising the same
latent. Decoding mirrors it.

Layouts: the transformers folder (kyutai/mimi; also by the names that its model has in memory in
transformers 5), and Kyutai's single files with `in_proj_weight` or
with `in_projs.0.weight`. The two differ in how they pair the channels for the rotary positions;
weights are put in the order of the former while they are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.checkpoints.configs import MAX_LAYERS, whole_number
from streamenc.errors import CheckpointError
from streamenc.layers.attention.sliding import Transformer
from streamenc.layers.conv.causal import CausalConv1d, CausalConvTranspose1d
from streamenc.layers.linear import Linear
from streamenc.layers.quantize import ResidualVQ, decode, encode
from streamenc.layers.streamed import Chain
from streamenc.models.model import Model
from streamenc.models.seanet import Layout, Seanet, seanet_decoder, seanet_encoder, seanet_origins
from streamenc.models.signal import Signal
from streamenc.options import choice
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

MAX_SIZE = 1 << 16
_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "num_hidden_layers",
    "sliding_window",
    "codebook_size",
    "codebook_dim",
    "num_quantizers",
    "num_semantic_quantizers",
    "upsample_groups",
    "sampling_rate",
)
TAILS = ("moshi", "transformers")
_QUANTIZERS: dict[Layout, dict[str, str]] = {
    "transformers": {
        "semantic": "quantizer.semantic_residual_vector_quantizer",
        "acoustic": "quantizer.acoustic_residual_vector_quantizer",
    },
    "original": {"semantic": "quantizer.rvq_first", "acoustic": "quantizer.rvq_rest"},
}

# The published model, in the words of transformers' config.json; Kyutai's single files carry no
# config.
PUBLISHED: dict[str, Any] = {
    "sampling_rate": 24_000,
    "audio_channels": 1,
    "hidden_size": 512,
    "num_filters": 64,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "compress": 2,
    "use_conv_shortcut": False,
    "pad_mode": "constant",
    "codebook_size": 2048,
    "codebook_dim": 256,
    "num_quantizers": 32,
    "num_semantic_quantizers": 1,
    "upsample_groups": 512,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "sliding_window": 250,
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
}


class MimiShape:
    """A config, checked, with the parts that the encoder and the decoder are made of."""

    def __init__(self, config: dict[str, Any], name: str = "mimi") -> None:
        """Raises ValueError or TypeError for a config that makes no sense, or another model."""
        self.name = name
        c = {**PUBLISHED, **{k: v for k, v in config.items() if k in PUBLISHED and v is not None}}
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
            raise ValueError(f"rope_parameters are {rope!r}; only 'default' ones are known")
        c["rope_theta"] = rope.get("rope_theta", c["rope_theta"])
        unsupported = {
            "use_causal_conv": True,
            "trim_right_ratio": 1.0,
            "attention_bias": False,
            "hidden_act": "gelu",
        }
        for key, wanted in unsupported.items():
            if config.get(key, wanted) != wanted:
                raise ValueError(f"{key} is {config[key]!r}; only {wanted!r} is known")
        self.c = c
        self.net = Seanet(
            channels=c["audio_channels"],
            latent=c["hidden_size"],
            filters=c["num_filters"],
            ratios=tuple(c["upsampling_ratios"]),
            kernel_size=c["kernel_size"],
            last_kernel_size=c["last_kernel_size"],
            residual_kernel_size=c["residual_kernel_size"],
            residual_layers=c["num_residual_layers"],
            dilation_base=c["dilation_growth_rate"],
            compress=c["compress"],
            conv_shortcut=bool(c["use_conv_shortcut"]),
            pad_mode=c["pad_mode"],
        )
        _check_sizes(c)
        self.hop = 2 * self.net.hop
        self.frame_rate = Fraction(c["sampling_rate"], self.hop)
        self.audio = Port("audio", Fraction(c["sampling_rate"]), c["audio_channels"])
        self.codes = Port("codes", self.frame_rate, c["num_quantizers"], "uint16")

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> MimiShape:
        """Raises CheckpointError."""
        try:
            return cls(checkpoint.config)
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.name}: its config cannot be used: {error}"
            ) from error

    def transformer(self) -> Transformer:
        c = self.c
        return Transformer(
            c["hidden_size"],
            c["num_attention_heads"],
            c["intermediate_size"],
            c["num_hidden_layers"],
            c["sliding_window"],
            max_step=2,
            rope_theta=c["rope_theta"],
            norm_eps=c["norm_eps"],
        )

    def quantizers(self, channels_in: int | None = None) -> list[ResidualVQ]:
        """The semantic one and the acoustic one."""
        c = self.c
        semantic = c["num_semantic_quantizers"]
        return [
            ResidualVQ(levels, c["codebook_size"], c["codebook_dim"], channels_in=channels_in)
            for levels in (semantic, c["num_quantizers"] - semantic)
        ]


def _check_sizes(c: dict[str, Any]) -> None:
    """Of the transformer and the codebooks; Seanet checks its own. Raises ValueError."""
    most = dict.fromkeys(_SIZES, MAX_SIZE) | {
        "sampling_rate": 1 << 20,
        "num_hidden_layers": MAX_LAYERS,
    }
    for key, high in most.items():
        whole_number(key, c[key], high)
    for key, top in (("norm_eps", 1.0), ("rope_theta", 1e12)):
        if type(c[key]) not in (int, float) or not 0 < c[key] <= top:
            raise ValueError(f"{key} is {c[key]!r}; wanted a number above 0, up to {top:g}")
    width, heads, groups = c["hidden_size"], c["num_attention_heads"], c["upsample_groups"]
    if width % (2 * heads) or width % groups:
        raise ValueError(
            f"{heads} heads of an even size, and {groups} groups, do not divide a width of {width}"
        )
    if not c["num_semantic_quantizers"] < c["num_quantizers"] <= 1 << 10:
        raise ValueError(
            f"{c['num_quantizers']} codebooks, of which {c['num_semantic_quantizers']} semantic; "
            "wanted at most 1024, and some others beside the semantic ones"
        )


class MimiEncoder(Model):
    """24 kHz audio -> latents (batch, 512, frames) at 12.5 Hz; `after` quantises them.

    tail  What ends a stream whose length is no multiple of 1920 samples: "moshi" pads the waveform
          with zeros, as Kyutai's own code does; "transformers" pads the input of each convolution,
          as that library does. Only the last frame differs.
    """

    def __init__(self, shape: MimiShape, tail: str) -> None:
        super().__init__()
        width = shape.c["hidden_size"]
        self.tail, self.latent = tail, width
        self.chain = Chain(
            [
                seanet_encoder(shape.net),
                shape.transformer(),
                CausalConv1d(width, width, 4, 2, bias=False, pad_mode="replicate"),
            ]
        )
        self.semantic, self.acoustic = shape.quantizers(width)
        self.spec = StreamSpec(
            name=shape.name,
            input=shape.audio,
            output=shape.codes,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=shape.c["codebook_size"],
            note=f"a ragged end is padded as {tail} does",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.latent, 0), state
        if end and self.tail == "moshi":
            x = F.pad(x, (0, -x.shape[-1] % self.spec.hop))
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)

    def pages(self, state: State) -> Iterator[Tensor]:
        return self.chain.pages(state)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        total = self.spec.output.channels if codebooks is None else self.check_codebooks(codebooks)
        semantic = min(total, self.semantic.levels)
        return encode([self.semantic, self.acoustic], y, [semantic, total - semantic])


class SplitDecoder(Model):
    """What decodes codes of semantic and of acoustic books; any number of them from 1 up.

    `before` sums the entries of the semantic and of the acoustic books, (batch, 2 * dim, frames),
    and `step` projects both at once: a product's last bits depend on how many frames it is given.
    """

    project: Linear
    semantic: ResidualVQ
    acoustic: ResidualVQ

    def before(self, x: Signal) -> Tensor:
        codes = self.check_codes(super().before(x))
        return decode([self.semantic, self.acoustic], codes).to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), state
        latents = self.project(x.transpose(1, 2)).transpose(1, 2)
        return self.chain.step(latents, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, plan.linear(x, self.project), state)

    def pages(self, state: State) -> Iterator[Tensor]:
        return self.chain.pages(state)


class MimiDecoder(SplitDecoder):
    """Codes -> 24 kHz audio, 1920 samples a frame."""

    def __init__(self, shape: MimiShape) -> None:
        super().__init__()
        width = shape.c["hidden_size"]
        groups = shape.c["upsample_groups"]
        self.project = Linear(2 * shape.c["codebook_dim"], width)
        self.chain = Chain(
            [
                CausalConvTranspose1d(width, width, 4, 2, groups=groups, bias=False),
                shape.transformer(),
                seanet_decoder(shape.net),
            ]
        )
        self.semantic, self.acoustic = shape.quantizers()
        self.spec = StreamSpec(
            name=shape.name,
            input=shape.codes,
            output=shape.audio,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=shape.c["codebook_size"],
        )


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of Mimi's layouts."""
    if any(name.startswith(("encoder.encoder.", "decoder.decoder.")) for name in checkpoint.names):
        return False  # a part of a larger codec
    return _layout(checkpoint.renamed(_as_published)) is not None


def _as_published(name: str) -> str:
    """A tensor's name as folders have it, of the one that it has in transformers 5 in memory."""
    name = re.sub(r"^(encoder|decoder)\.\1_seanet\.", r"\1.", name)
    return re.sub(r"^(encoder|decoder)\.(\1_transformer|downsample|upsample)\.", r"\2.", name)


def published_spec(variant: str) -> StreamSpec:
    """What the published encoder promises; it has no variants."""
    with torch.device("meta"):
        return MimiEncoder(MimiShape({}), "moshi").spec


def load(
    name: str, checkpoint: Checkpoint, part: str, *, tail: str = "moshi"
) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them.

    tail  "moshi" fills the last frame up with zeros in the waveform, "transformers" in the input of
          each convolution; see MimiEncoder.
    """
    tail = choice("tail", tail, TAILS)
    checkpoint = checkpoint.renamed(_as_published)
    layout = _layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in Mimi "
            "(encoder.layers.0.conv.weight or encoder.model.0.conv.conv.weight)"
        )
    shape = MimiShape.of(checkpoint)
    encoder: Model | None = None
    decoder: Model | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            encoder = MimiEncoder(shape, tail)
        fill(encoder, mimi_origins(encoder, shape, layout, "encoder", checkpoint), checkpoint)
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = MimiDecoder(shape)
        fill(decoder, mimi_origins(decoder, shape, layout, "decoder", checkpoint), checkpoint)
    return encoder, decoder


def _layout(checkpoint: Checkpoint) -> Layout | None:
    for part in ("encoder", "decoder"):
        if f"{part}_transformer.layers.0.self_attn.q_proj.weight" in checkpoint:
            return "transformers"
        if f"{part}_transformer.transformer.layers.0.norm1.weight" in checkpoint:
            return "original"
    return None


def mimi_origins(
    model: MimiEncoder | MimiDecoder,
    shape: MimiShape,
    layout: Layout,
    part: str,
    checkpoint: Checkpoint,
) -> dict[str, Origin]:
    """Where each parameter comes from; encoder and decoder have the same layers, mirrored."""
    origins: dict[str, Origin] = {}
    for index, layer in enumerate(model.chain.layers):
        ours = f"chain.layers.{index}."
        if isinstance(layer, Chain):
            origins |= seanet_origins(layer, part, layout, ours)
        elif isinstance(layer, Transformer):
            for i, block in enumerate(layer.layers):
                there = f"{part}_transformer.layers.{i}"
                if layout == "original":
                    there = f"{part}_transformer.transformer.layers.{i}"
                rename = _transformer_origins(
                    there, shape.c["num_attention_heads"], layout, checkpoint
                )
                assert rename.keys() == block.state_dict().keys()
                origins |= {f"{ours}layers.{i}.{key}": origin for key, origin in rename.items()}
        else:
            there = "downsample.conv" if part == "encoder" else "upsample.conv"
            if layout == "original":
                there = (
                    "downsample.conv.conv.conv"
                    if part == "encoder"
                    else "upsample.convtr.convtr.convtr"
                )
            origins[f"{ours}weight"] = f"{there}.weight"
    origins |= quantizer_origins(model.semantic, "semantic", layout)
    origins |= quantizer_origins(model.acoustic, "acoustic", layout)
    if isinstance(model, MimiDecoder):
        origins["project.weight"] = partial(projections, layout=layout)
    return origins


def _transformer_origins(
    there: str, heads: int, layout: Layout, checkpoint: Checkpoint
) -> dict[str, Origin]:
    if layout == "transformers":
        return {
            "norm1.weight": f"{there}.input_layernorm.weight",
            "norm1.bias": f"{there}.input_layernorm.bias",
            "in_proj.weight": joined([f"{there}.self_attn.{p}_proj.weight" for p in "qkv"]),
            "out_proj.weight": f"{there}.self_attn.o_proj.weight",
            "scale1": f"{there}.self_attn_layer_scale.scale",
            "norm2.weight": f"{there}.post_attention_layernorm.weight",
            "norm2.bias": f"{there}.post_attention_layernorm.bias",
            "linear1.weight": f"{there}.mlp.fc1.weight",
            "linear2.weight": f"{there}.mlp.fc2.weight",
            "scale2": f"{there}.mlp_layer_scale.scale",
        }
    older = f"{there}.self_attn.in_proj_weight" in checkpoint
    in_proj, out_proj = (
        ("in_proj_weight", "out_proj") if older else ("in_projs.0.weight", "out_projs.0")
    )
    return {
        **{f"{n}.{p}": f"{there}.{n}.{p}" for n in ("norm1", "norm2") for p in ("weight", "bias")},
        "in_proj.weight": half_pairs(f"{there}.self_attn.{in_proj}", heads),
        "out_proj.weight": f"{there}.self_attn.{out_proj}.weight",
        "linear1.weight": f"{there}.linear1.weight",
        "linear2.weight": f"{there}.linear2.weight",
        "scale1": f"{there}.layer_scale_1.scale",
        "scale2": f"{there}.layer_scale_2.scale",
    }


def joined(names: list[str]) -> Callable[[Checkpoint], Tensor]:
    return lambda checkpoint: torch.cat([checkpoint.get(name) for name in names])


def half_pairs(name: str, heads: int) -> Callable[[Checkpoint], Tensor]:
    """Query and key rows for rotary pairs (i, i + dim / 2), from pairs (2i, 2i + 1)."""

    def read(checkpoint: Checkpoint) -> Tensor:
        q, k, v = checkpoint.get(name).chunk(3)

        def reorder(w: Tensor) -> Tensor:
            pairs = w.view(heads, w.shape[0] // heads // 2, 2, w.shape[1])
            return pairs.transpose(1, 2).reshape(w.shape)

        return torch.cat((reorder(q), reorder(k), v))

    return read


def quantizer_origins(quantizer: ResidualVQ, kind: str, layout: Layout) -> dict[str, Origin]:
    there = _QUANTIZERS[layout][kind]
    if layout == "transformers":
        books, total = f"{there}.layers", "codebook.embed_sum"
        usage = "codebook.cluster_usage"
    else:
        books, total = f"{there}.vq.layers", "_codebook.embedding_sum"
        usage = "_codebook.cluster_usage"

    def read_books(checkpoint: Checkpoint) -> Tensor:
        entries, dim = quantizer.codebooks.shape[1:]
        stacked = []
        for level in range(quantizer.levels):
            entry_sum = checkpoint.get(f"{books}.{level}.{total}", (entries, dim))
            count = checkpoint.get(f"{books}.{level}.{usage}", (entries,))
            stacked.append(entry_sum / count.clamp(min=1e-5)[:, None])
        return torch.stack(stacked)

    def read_projection(checkpoint: Checkpoint) -> Tensor:
        return checkpoint.get(f"{there}.input_proj.weight").squeeze(-1)

    origins: dict[str, Origin] = {f"{kind}.codebooks": read_books}
    if quantizer.project_in is not None:
        origins[f"{kind}.project_in"] = read_projection
    return origins


def projections(checkpoint: Checkpoint, layout: Layout) -> Tensor:
    """Out of the semantic and the acoustic books' space, side by side."""
    names = _QUANTIZERS[layout].values()
    weights = [checkpoint.get(f"{there}.output_proj.weight").squeeze(-1) for there in names]
    return torch.cat(weights, dim=1)
