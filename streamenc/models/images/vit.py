"""ViT and DINOv2: features of single images (arXiv 2010.11929, 2304.07193, 2309.16588).

An image is cut into patches of 14 or 16 pixels; with a class token before them (and registers, in
some models) they go through a transformer. `output` says what comes out of the hidden states:

    cls      The class token, (batch, channels, images).
    patches  A grid of patches, (batch, channels, images, rows, columns).

ViT and DINOv2 differ in the layer scale and the positions: ViT has them for one grid; DINOv2's are
bicubically resized to any, here as in transformers (its authors' code adds 0.1 to the number of
patches there). ViT's are too, where `size` asks for it.

Preparation: what the checkpoint says of it (preprocessor_config.json, processor_config.json);
without that the published defaults, which are for ViT 224 x 224 at once, bilinear, mean and std
0.5, and for DINOv2 the centre 224 x 224 of an image whose shorter side is scaled to 256, bicubic,
with ImageNet's mean and std.

Layout: transformers' folders of ViTModel, Dinov2Model and Dinov2WithRegistersModel, with or without
a head on top, which is not read; also by the names that they have in memory in transformers 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.images.image import (
    IMAGENET,
    RATE,
    ImageModel,
    Preparation,
    Standardised,
    chosen_size,
    published_preparation,
    video,
)
from streamenc.spec import ImageSize, Port, StreamSpec

FAMILIES = ("vit", "dinov2", "dinov2_with_registers")
OUTPUTS = ("cls", "patches")
MAX_LAYERS = 1000
_PATCHES = "embeddings.patch_embeddings.projection.weight"
_ATTENTION = {
    **{name: f"attention.attention.{name}" for name in ("query", "key", "value")},
    "out": "attention.output.dense",
}
_NAMES = {
    "vit": {
        **_ATTENTION,
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    },
    "dinov2": {**_ATTENTION, "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
    "swiglu": {**_ATTENTION, "fc1": "mlp.weights_in", "fc2": "mlp.weights_out"},
}


@dataclass(frozen=True, slots=True)
class ViTShape:
    """A network.

    positions  Rows, and columns, of the grid whose positions were learnt.
    registers  Tokens between the class token and the patches.
    scaled     Whether blocks scale what they add, channel by channel.
    gated      Whether they have SwiGLU in place of an activation.
    """

    family: str
    width: int
    layers: int
    heads: int
    hidden: int
    patch: int
    positions: int
    eps: float
    act: str = "gelu"
    bias: bool = True
    registers: int = 0
    scaled: bool = False
    gated: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """What comes out: hidden states by their numbers, and which of them go through the norm."""

    kind: str
    layers: tuple[int, ...]
    normed: tuple[bool, ...]


class _EncoderBlock(nn.Module):
    def __init__(self, shape: ViTShape) -> None:
        super().__init__()
        width, self.heads, self.act = shape.width, shape.heads, shape.act
        self.gated = shape.gated
        self.norm1 = nn.LayerNorm(width, eps=shape.eps)
        self.query, self.key, self.value = (
            nn.Linear(width, width, bias=shape.bias) for _ in range(3)
        )
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=shape.eps)
        self.fc1 = nn.Linear(width, shape.hidden * (2 if shape.gated else 1))
        self.fc2 = nn.Linear(shape.hidden, width)
        scales = [nn.Parameter(torch.empty(width)) if shape.scaled else None for _ in range(2)]
        self.scale1, self.scale2 = scales

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._scaled(self._attention(self.norm1(x)), self.scale1)
        return x + self._scaled(self._feed_forward(self.norm2(x)), self.scale2)

    @staticmethod
    def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
        return x if scale is None else x * scale

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y

    def _feed_forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            x = F.silu(gate) * value
        else:
            x = F.gelu(x, approximate="none" if self.act == "gelu" else "tanh")
        y: Tensor = self.fc2(x)
        return y


class ViTEncoder(ImageModel):
    """Images -> class tokens or grids of patches; layers that nobody wants are absent."""

    def __init__(
        self, shape: ViTShape, output: Output, preparation: Preparation, rate: Any
    ) -> None:
        grid = output.kind == "patches"
        fps = options.rate("rate", rate)
        ports = (
            video(fps, preparation.image),
            Port("features", fps, shape.width * len(output.layers), axes=2 if grid else 0),
        )
        super().__init__(shape.family, ports)
        self.shape, self.output = shape, output
        width = shape.width
        self.prepared = Standardised(preparation)
        self.patches = nn.Conv2d(3, width, shape.patch, stride=shape.patch)
        self.cls = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + shape.positions**2, width))
        self.registers = nn.Parameter(torch.empty(1, shape.registers, width))
        self.blocks = nn.ModuleList(_EncoderBlock(shape) for _ in range(max(output.layers)))
        self.norm = nn.LayerNorm(width, eps=shape.eps) if any(output.normed) else None

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        patch = self.shape.patch
        return (height // patch, width // patch) if self.output.kind == "patches" else ()

    def images(self, x: Tensor) -> Tensor:
        rows, columns = (size // self.shape.patch for size in x.shape[2:])
        tokens = self.patches(self.prepared(x)).flatten(2).transpose(1, 2)
        count = len(tokens)
        tokens = torch.cat((self.cls.expand(count, -1, -1), tokens), dim=1)
        tokens = tokens + self._positions(rows, columns)
        registers = self.registers.expand(count, -1, -1)
        tokens = torch.cat((tokens[:, :1], registers, tokens[:, 1:]), dim=1)
        hidden = {0: tokens}
        for i, block in enumerate(self.blocks):
            tokens = hidden[i + 1] = block(tokens)
            if i not in self.output.layers:
                del hidden[i]
        outputs, patches = [], self.output.kind == "patches"
        for layer, normed in zip(self.output.layers, self.output.normed, strict=True):
            state = hidden[layer]
            state = state[:, 1 + self.shape.registers :] if patches else state[:, 0]
            outputs.append(state if self.norm is None or not normed else self.norm(state))
        y = torch.cat(outputs, dim=-1)
        return y.transpose(1, 2).reshape(count, -1, rows, columns) if patches else y

    def _positions(self, rows: int, columns: int) -> Tensor:
        side = self.shape.positions
        if rows == columns == side:
            return self.positions
        grid = self.positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        dtype = grid.dtype
        if self.shape.family != "vit":
            grid = grid.float()  # as the published code does, whatever the model's type
        resized = F.interpolate(
            grid,
            size=(rows, columns),
            mode="bicubic",
            align_corners=False,
            antialias=self.shape.family == "dinov2_with_registers",
        ).to(dtype)
        return torch.cat((self.positions[:, :1], resized.flatten(2).transpose(1, 2)), dim=1)

    def origins(self, prefix: str) -> dict[str, Origin]:
        """Where each parameter comes from."""
        shape, embeddings = self.shape, f"{prefix}embeddings."
        names: dict[str, Origin] = {
            "patches.weight": prefix + _PATCHES,
            "patches.bias": f"{prefix}{_PATCHES.removesuffix('weight')}bias",
            "cls": f"{embeddings}cls_token",
            "positions": f"{embeddings}position_embeddings",
            "registers": f"{embeddings}register_tokens",
            "norm.weight": f"{prefix}layernorm.weight",
            "norm.bias": f"{prefix}layernorm.bias",
        }
        if not shape.registers:
            names["registers"] = lambda checkpoint: torch.empty(1, 0, shape.width)
        renamed = _NAMES["vit" if shape.family == "vit" else "swiglu" if shape.gated else "dinov2"]
        for name in self.state_dict():
            if name.startswith("blocks."):
                _, layer, part, *rest = name.split(".")
                if part.startswith("scale"):
                    inner = f"layer_{part}.lambda1"
                else:
                    inner = ".".join((renamed.get(part, part), *rest))
                names[name] = _gated(f"{prefix}encoder.layer.{layer}.{inner}")
        return names


def _gated(name: str) -> Origin:
    """SwiGLU's first product, which transformers 5 has in two parts in memory."""
    if ".weights_in." not in name:
        return name
    parts = [name.replace("weights_in", part) for part in ("gate_proj", "up_proj")]

    def read(checkpoint: Checkpoint) -> Tensor:
        if name in checkpoint or parts[0] not in checkpoint:
            return checkpoint.get(name)
        return torch.cat([checkpoint.get(part) for part in parts])

    return read


# Of the published models: width, layers, heads.
_PUBLISHED = {"vit-base": (768, 12, 12), "dinov2-base": (768, 12, 12), "dinov2-small": (384, 12, 6)}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-12},
    "dinov2": {"patch_size": 14, "image_size": 224, "layer_norm_eps": 1e-6},
    "dinov2_with_registers": {"patch_size": 16, "image_size": 224, "layer_norm_eps": 1e-6},
}


def _default_preparation(shape: ViTShape) -> Preparation:
    if shape.family == "vit":
        side = shape.patch * shape.positions
        half = (0.5, 0.5, 0.5)
        return Preparation(ImageSize(shape.patch, (side, side), 0, "bilinear"), half, half)
    return Preparation(ImageSize(shape.patch, (224, 224), 256, "bicubic"), *IMAGENET)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "vit-base", "dinov2-small", ..."""
    family = variant.partition("-")[0]
    width, layers, heads = _PUBLISHED[variant]
    patch, positions = (16, 14) if family == "vit" else (14, 37)
    shape = ViTShape(family, width, layers, heads, 4 * width, patch, positions, 1e-6)
    with torch.device("meta"):
        output = Output("cls", (layers,), (True,))
        return ViTEncoder(shape, output, _default_preparation(shape), RATE).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether config or tensors are those of one of the families."""
    if stated := checkpoint.config.get("model_type"):
        return stated in FAMILIES
    return _prefix(checkpoint) is not None


# From the names that tensors have in transformers 5 in memory to those that folders have.
_RENAMED = (
    (r"\b(?<!encoder\.)layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"\b(?<!encoder\.)layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"\b(?<!encoder\.)layers\.(\d+)\.", r"encoder.layer.\1."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.down_proj\.", ".mlp.weights_out."),
)


def _as_published(name: str) -> str:
    for pattern, to in _RENAMED:
        name = re.sub(pattern, to, name)
    return name


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the names, of models with a head on top."""
    prefixes = ("", *(f"{family}." for family in FAMILIES))
    return next((prefix for prefix in prefixes if prefix + _PATCHES in checkpoint), None)


def _shape_of(checkpoint: Checkpoint, prefix: str, family: str) -> ViTShape:
    """Raises CheckpointError where config and tensors do not give a network."""
    config = {**_DEFAULTS[family], **checkpoint.config}
    if not checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.name}: no config.json beside the weights, which says how many heads the "
            "model has; load the folder that holds both"
        )
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size")
    said = {key: config.get(key) for key in keys}
    ratio = config.get("mlp_ratio", 4)
    if family == "vit":
        said["intermediate_size"] = config.get("intermediate_size")
    elif type(ratio) in (int, float) and 0 < ratio < 1 << 16 and type(said["hidden_size"]) is int:
        said["mlp_ratio x hidden_size"] = int(said["hidden_size"] * ratio)
    else:
        said["mlp_ratio"] = None
    numbers = [n for n in said.values() if type(n) is int and 0 < n < 1 << 16]
    eps = config["layer_norm_eps"]
    if (
        len(numbers) < len(said)
        or numbers[0] % numbers[2]
        or numbers[1] > MAX_LAYERS
        or numbers[4] < numbers[3]
        or not isinstance(eps, float)
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has {said} and layer_norm_eps {eps!r}; wanted "
            "whole numbers from 1 up, a hidden_size that is a multiple of the heads, an image no "
            "smaller than its patches, and a small number"
        )
    width, layers, heads, patch, side, hidden = numbers
    act = config.get("hidden_act", "gelu")
    if act not in ("gelu", "gelu_new", "gelu_pytorch_tanh"):
        raise CheckpointError(f"{checkpoint.name}: hidden_act is {act!r}; wanted a kind of gelu")
    gated = family != "vit" and bool(config.get("use_swiglu_ffn"))
    if gated:
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    registers: tuple[int, ...] = (1, 0, width)
    if family == "dinov2_with_registers":
        registers = checkpoint.shape(tokens := f"{prefix}embeddings.register_tokens")
        if len(registers) != 3 or registers[1] > 1 << 10:
            raise CheckpointError(
                f"{checkpoint.name}: {tokens} has shape {registers}; wanted (1, some, {width})"
            )
    return ViTShape(
        family,
        width,
        layers,
        heads,
        hidden,
        patch,
        side // patch,
        eps,
        act,
        bool(config.get("qkv_bias", True)),
        registers[1],
        family != "vit",
        gated,
    )


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    output: str = "cls",
    layer: Any = None,
    layers: Any = None,
    norm: Any = None,
    size: Any = None,
    rate: Any = RATE,
) -> tuple[ViTEncoder, None]:
    """The encoder; there is no decoder. All options also come as strings.

    output  "cls" or "patches"; see the module.
    layer, layers  The hidden states that come out, their channels one below the other: 9, "6,9",
            [0, -1] or "all". 0 is the transformer's input, 12 or -1 the last layer of a base model,
            which is the default. Layers beyond the last one wanted are neither loaded nor computed.
    norm    Whether the final LayerNorm is applied to them: True to all, False to none; None to the
            last layer alone, as transformers does. (DINOv2's own code normalises all.)
    size    Of the images: None for the published one, 224 x 224; "any" for all multiples of the
            patch; or pixels, 448 or "700x392" (WIDTHxHEIGHT). Positions are resized to it.
    rate    Images a second, for times alone.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError("these features have no decoder; load the encoder")
    checkpoint = checkpoint.renamed(_as_published)
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in ViT or "
            f"DINOv2 ({_PATCHES})"
        )
    stated, given = checkpoint.config.get("model_type"), name.partition(":")[0]
    family = stated if stated in FAMILIES else given if given in FAMILIES else FAMILIES[0]
    shape = _shape_of(checkpoint, prefix, family)
    wanted = hidden_states(layer, layers, shape.layers)
    normed = [n == shape.layers if norm is None else options.flag("norm", norm) for n in wanted]
    how = published_preparation(checkpoint, _default_preparation(shape))
    with torch.device("meta"):
        encoder = ViTEncoder(
            shape,
            Output(options.choice("output", output, OUTPUTS), wanted, tuple(normed)),
            chosen_size(how, size),
            rate,
        )
    fill(encoder, encoder.origins(prefix), checkpoint)
    return encoder, None
