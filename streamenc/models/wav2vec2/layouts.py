"""Published layouts of wav2vec 2.0, HuBERT and WavLM: which tensors, their names and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.checkpoints.configs import MAX_LAYERS, MAX_SIZE, whole_number
from streamenc.errors import CheckpointError
from streamenc.layers.attention.chunked import ChunkedTransformer
from streamenc.layers.conv.causal import ValidConv1d
from streamenc.layers.norm import RunningNorm
from streamenc.layers.positions import PositionalConv
from streamenc.models.wav2vec2.encoder import (
    BASE,
    ChannelNorm,
    Projection,
    SpeechEncoder,
    SpeechShape,
)

FAMILIES = ("wav2vec2", "hubert", "wavlm")

Layout = tuple[str, Literal["transformers", "fairseq"]]
_STEMS: tuple[tuple[str, Literal["transformers", "fairseq"]], ...] = (
    ("feature_extractor.conv_layers.0.conv.weight", "transformers"),
    ("feature_extractor.conv_layers.0.0.weight", "fairseq"),
)


def find_layout(checkpoint: Checkpoint) -> Layout | None:
    """What stands before all names ("hubert." below a head), and whose names they are."""
    for name in sorted(checkpoint.names):
        for ending, layout in _STEMS:
            if name.endswith(ending) and name.removesuffix(ending)[-1:] in ("", "."):
                return name.removesuffix(ending), layout
    return None


def shape_of(checkpoint: Checkpoint, layout: Layout) -> SpeechShape:
    """Raises CheckpointError for another network with the same stem."""
    stated = checkpoint.config.get("model_type")
    if stated not in (None, *FAMILIES):
        raise CheckpointError(f"{checkpoint.name} is {stated!r}, not wav2vec 2.0, HuBERT or WavLM")
    for name in checkpoint.names:
        if any(other in name for other in ("adapter_layer", "pos_conv.0.0.weight")):
            raise CheckpointError(
                f"{checkpoint.name} has {name!r}, which wav2vec 2.0, HuBERT and WavLM have not; is "
                "it data2vec, or a model with adapters?"
            )
    prefix, whose = layout
    biased = prefix + _NAMES[whose]["distances"] + ".weight" in checkpoint
    if stated is not None and biased != (stated == "wavlm"):
        raise CheckpointError(
            f"{checkpoint.name} is {stated!r} by its config, but its attention has "
            f"{'a' if biased else 'no'} bias by distance, as WavLM's alone has; which is it?"
        )
    shape = _shape_of_tensors(checkpoint, layout)
    return _shape_of_config(checkpoint, shape) if checkpoint.config else shape


def family_of(shape: SpeechShape, stated: object) -> str:
    """Of which family a network is, by what is in it, and by what its config or user states."""
    if shape.distances is not None:
        return "wavlm"
    return stated if isinstance(stated, str) and stated in FAMILIES[:2] else FAMILIES[0]


def _shape_of_config(checkpoint: Checkpoint, found: SpeechShape) -> SpeechShape:
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

    def number(key: str, default: int, most: int = MAX_SIZE) -> int:
        try:
            return whole_number(key, config.get(key, default), most)
        except ValueError as error:
            raise CheckpointError(
                f"{checkpoint.name}: its config cannot be used: {error}"
            ) from error

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
    distances = None
    if found.distances is not None:
        buckets, furthest = number("num_buckets", 320), number("max_bucket_distance", 800)
        if buckets % 4 or furthest <= buckets // 4:
            raise CheckpointError(
                f"{checkpoint.name}: num_buckets={buckets} and max_bucket_distance={furthest}; "
                "wanted a multiple of 4, and a distance above a quarter of it"
            )
        distances = (buckets, furthest)
    return SpeechShape(
        conv=tuple(zip(channels, kernels, strides, strict=True)),
        group_norm=config.get("feat_extract_norm", "group") == "group",
        conv_bias=bool(config.get("conv_bias", False)),
        project_norm=bool(config.get("feat_proj_layer_norm", True)),
        width=width,
        heads=heads,
        feed_forward=number("intermediate_size", BASE.feed_forward),
        layers=number("num_hidden_layers", BASE.layers, MAX_LAYERS),
        norm_eps=float(eps),
        norm_first=bool(config.get("do_stable_layer_norm", False)),
        position_kernel=number("num_conv_pos_embeddings", BASE.position_kernel),
        position_groups=groups,
        normalize=bool(checkpoint.preprocessor.get("do_normalize", True)),
        distances=distances,
    )


def _shape_of_tensors(checkpoint: Checkpoint, layout: Layout) -> SpeechShape:
    """For files without a config. Tensors do not tell strides and heads: as all models published
    have them, a kernel of 10 has stride 5, others have 2; and there are 16 heads from a width of
    1024 up, and heads of 64 below. Those with LayerNorm in the stem have it first everywhere.
    WavLM's furthest distance is 800 frames."""
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
    if (scale := prefix + ours["gate_scale"].format(0)) in checkpoint:
        heads = _axes(checkpoint, scale, 4)[1]
    position = next(
        name
        for part in (".weight_v", ".parametrizations.weight.original1", ".weight")
        if (name := prefix + ours["position"] + part) in checkpoint or part == ".weight"
    )
    _, per_group, kernel = _axes(checkpoint, position, 3)
    if width % heads or width % per_group:
        raise CheckpointError(f"{checkpoint.name}: a width of {width} is of no published model")
    bias = prefix + ours["distances"] + ".weight"
    buckets = _axes(checkpoint, bias, 2)[0] if bias in checkpoint else 0
    if buckets % 4 or buckets > 3200:
        raise CheckpointError(f"{checkpoint.name}: {buckets} buckets are of no published WavLM")
    return SpeechShape(
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
        distances=(buckets, 800) if buckets else None,
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
        "distances": "encoder.layers.0.attention.rel_attn_embed",
        "gate": "encoder.layers.{}.attention.gru_rel_pos_linear",
        "gate_scale": "encoder.layers.{}.attention.gru_rel_pos_const",
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
        "distances": "encoder.layers.0.self_attn.relative_attention_bias",
        "gate": "encoder.layers.{}.self_attn.grep_linear",
        "gate_scale": "encoder.layers.{}.self_attn.grep_a",
    },
}


def origins_of(model: SpeechEncoder, layout: Layout) -> dict[str, Origin]:
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
            origins[f"{ours}relative.weight"] = f"{names['distances']}.weight"
            for i in range(len(layer.layers)):
                origins |= _layer_origins(f"{ours}layers.{i}.", names, i)
    return origins


def _layer_origins(ours: str, names: dict[str, str], index: int) -> dict[str, Origin]:
    there = names["attention"].format(index)
    origins = _both(f"{ours}out_proj.", f"{there}.out_proj")
    for part in ("norm1", "linear1", "linear2", "norm2"):
        origins |= _both(f"{ours}{part}.", names[part].format(index))
    origins |= _both(f"{ours}gate.linear.", names["gate"].format(index))
    origins[f"{ours}gate.scale"] = _of_heads(names["gate_scale"].format(index))
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


def _of_heads(name: str) -> Callable[[Checkpoint], Tensor]:
    """Without the axis of lanes: (heads, 1, 1)."""
    return lambda checkpoint: checkpoint.get(name).squeeze(0)
