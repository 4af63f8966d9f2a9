"""A transformer over the patches of single images, as ViT has it and all that came of it.

An image is cut into patches, each of which becomes a token; a class token and registers may stand
before them. A place is told by learnt positions, which are resized to other grids than their own,
or by rotary ones, which know any grid (arXiv 2010.11929, 2309.16588, 2508.10104).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.checkpoints.configs import MAX_LAYERS
from streamenc.errors import CheckpointError
from streamenc.models.images.image import ImageModel, Preparation, Standardised, video
from streamenc.spec import Port
from streamenc.state import State

# The first of the numbers that a config has to give.
TRANSFORMER_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
BIASED = ("query", "key", "value", "out", "fc1", "fc2")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# By transformers' names.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
}


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """A network.

    positions   Rows, and columns, of the grid whose positions were learnt.
    biased      Which products of a block have a bias.
    cls         Whether a class token stands before the patches.
    registers   Tokens between the class token and the patches.
    scaled      Whether blocks scale what they add, channel by channel.
    gated       Whether the activation of one half of their middle scales the other half.
    early_norm  Whether tokens are normalised before the first block.
    rotary      The base of rotary positions, which then stand in place of learnt ones; 0 for none.
    frames      How many images of a window each token's place is seen in, before a block; 0 where
                each image is alone.
    resized     How learnt positions come to another grid: F.interpolate's mode; with "antialias"
                behind it, and "float32", where that is done in float32 whatever the model's type.
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
    biased: tuple[str, ...] = BIASED
    patch_bias: bool = True
    cls: bool = True
    registers: int = 0
    scaled: bool = False
    gated: bool = False
    early_norm: bool = False
    rotary: float = 0.0
    frames: int = 0
    resized: str = "bicubic"

    @property
    def before(self) -> int:
        """Tokens before the patches."""
        return self.cls + self.registers


@dataclass(frozen=True, slots=True)
class Output:
    """What comes out of the hidden states.

    tokens  "cls" for the class token, "patches" for a grid of patches, "all" for a row of all.
    layers  The hidden states by their numbers.
    normed  Which of them go through the final norm.
    """

    tokens: str
    layers: tuple[int, ...]
    normed: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """By what names a layout has our parameters.

    outside  Of what is no block: "patches", "cls", "positions", "registers", "norm", "early_norm".
    blocks   What stands before a block's parts, {} being its number.
    inside   Of a block's parts; several that are one of ours, one below the other. Others have our
             name.
    """

    outside: Mapping[str, str]
    blocks: str
    inside: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)


class FeedForward(nn.Module):
    """Two products with an activation between them, or with one that scales half of the first.

    out  Channels that come out, where they are not `width`.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        act: str,
        *,
        gated: bool = False,
        biased: Any = BIASED,
        out: int = 0,
    ) -> None:
        super().__init__()
        self.act, self.gated = act, gated
        self.fc1 = nn.Linear(width, hidden * (2 if gated else 1), bias="fc1" in biased)
        self.fc2 = nn.Linear(hidden, out or width, bias="fc2" in biased)

    def forward(self, x: Tensor) -> Tensor:
        x, act = self.fc1(x), ACTIVATIONS[self.act]
        if self.gated:
            gate, value = x.chunk(2, dim=-1)
            x = act(gate) * value
        else:
            x = act(x)
        y: Tensor = self.fc2(x)
        return y


class Attention(nn.Module):
    """Each token of an image sees all of them: (images, tokens, width) -> the same shape."""

    def __init__(self, width: int, heads: int, biased: Any = BIASED) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(width, width, bias=name in biased) for name in BIASED[:4]
        )

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (
            linear(x).view(split).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        if rotation is not None:
            q, k = (_rotated(t, *rotation) for t in (q, k))
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (images, heads, tokens, channels); channel c turns with the one half of them on."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Temporal(nn.Module):
    """Each place of a window's images sees the same place in all of them (arXiv 2310.01852)."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(1, shape.frames, shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=shape.eps)
        self.attention = Attention(shape.width, shape.heads, shape.biased)

    def forward(self, x: Tensor) -> Tensor:
        """x: (windows * frames, tokens, width) -> the same shape."""
        frames = self.embedding.shape[1]
        _, tokens, width = x.shape
        places = x.view(-1, frames, tokens, width).transpose(1, 2).reshape(-1, frames, width)
        places = places + self.embedding
        places = places + self.attention(self.norm(places))
        y: Tensor = places.view(-1, tokens, frames, width).transpose(1, 2).reshape(x.shape)
        return y


class Block(nn.Module):
    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        width = shape.width
        self.temporal = Temporal(shape) if shape.frames else None
        self.norm1 = nn.LayerNorm(width, eps=shape.eps)
        self.attention = Attention(width, shape.heads, shape.biased)
        self.norm2 = nn.LayerNorm(width, eps=shape.eps)
        self.mlp = FeedForward(
            width, shape.hidden, shape.act, gated=shape.gated, biased=shape.biased
        )
        scales = [nn.Parameter(torch.empty(width)) if shape.scaled else None for _ in range(2)]
        self.scale1, self.scale2 = scales

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if self.temporal is not None:
            x = self.temporal(x)
        x = x + self._scaled(self.attention(self.norm1(x), rotation), self.scale1)
        return x + self._scaled(self.mlp(self.norm2(x)), self.scale2)

    @staticmethod
    def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
        return x if scale is None else x * scale


class AttentionPooling(nn.Module):
    """One vector of all tokens, by a query that was learnt: (images, tokens, width) -> (images, 1,
    width); a block without the first normalisation, and no sum around its attention."""

    def __init__(self, shape: TransformerShape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.in_proj = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=shape.eps)
        self.mlp = FeedForward(width, shape.hidden, shape.act)

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        q = F.linear(self.probe.expand(len(x), -1, -1), weight[:width], bias[:width])
        k, v = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        split = (len(x), -1, self.heads, width // self.heads)
        q, k, v = (t.view(split).transpose(1, 2) for t in (q, k, v))
        x = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.mlp(self.norm(x))
        return y


class VisionTransformer(ImageModel):
    """Images -> class tokens, grids of patches, or what a head makes of them; layers that nobody
    wants are absent.

    head  Takes the tokens that `output` says, (images, tokens, width * layers), and gives
          (images, tokens, channels): all of them, or one where it is an AttentionPooling.
    """

    def __init__(
        self,
        shape: TransformerShape,
        output: Output,
        preparation: Preparation,
        rate: Any,
        head: nn.Module | None = None,
        channels: int = 0,
        note: str = "",
    ) -> None:
        grid = output.tokens != "cls" and not isinstance(head, AttentionPooling)
        fps = options.rate("rate", rate)
        width = shape.width
        channels = channels or width * len(output.layers)
        ports = (
            video(fps, preparation.image),
            Port("features", fps, channels, axes=2 if grid else 0),
        )
        super().__init__(shape.family, ports, window=shape.frames or 1, note=note)
        self.shape, self.output = shape, output
        self.prepared = Standardised(preparation)
        self.patches = nn.Conv2d(3, width, shape.patch, stride=shape.patch, bias=shape.patch_bias)
        places = 0 if shape.rotary else shape.cls + shape.positions**2
        self.cls, self.positions, self.registers = (
            nn.Parameter(torch.empty(1, count, width)) if count else None
            for count in (int(shape.cls), places, shape.registers)
        )
        self.early_norm = nn.LayerNorm(width, eps=shape.eps) if shape.early_norm else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(max(output.layers)))
        self.norm = nn.LayerNorm(width, eps=shape.eps) if any(output.normed) else None
        self.head = head

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        if not self.spec.output.axes:
            return ()
        rows, columns = height // self.shape.patch, width // self.shape.patch
        if self.output.tokens == "all":
            return (1, self.shape.before + rows * columns)
        return (rows, columns)

    def images(self, x: Tensor) -> Tensor:
        count, height, width = x.shape[0], *x.shape[2:]
        hidden = self.hidden(self.prepared(x))
        outputs = []
        for layer, normed in zip(self.output.layers, self.output.normed, strict=True):
            state = self._chosen(hidden[layer])
            outputs.append(state if self.norm is None or not normed else self.norm(state))
        y = torch.cat(outputs, dim=-1)
        if self.head is not None:
            y = self.head(y)
        return y.transpose(1, 2).reshape(count, -1, *self.grid(height, width))

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        rest = x.shape[2] % self.window
        if not rest:
            return super().step(x, state, end=end)
        assert end
        # A last window of fewer images: repeated to fill it as np.linspace(0, rest - 1, window)
        # picks them; what comes out is where each of them stands first.
        whole = x.shape[2] - rest
        picked = [n * (rest - 1) // (self.window - 1) for n in range(self.window)]
        filled = torch.cat((x[:, :, :whole], x[:, :, [whole + n for n in picked]]), dim=2)
        y, _ = super().step(filled, None, end=end)
        kept = [*range(whole), *(whole + picked.index(n) for n in range(rest))]
        return y[:, :, kept], state

    def hidden(self, x: Tensor) -> dict[int, Tensor]:
        """The hidden states that come out, by their numbers, (images, tokens, width)."""
        rows, columns = (size // self.shape.patch for size in x.shape[2:])
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        count = len(tokens)
        if self.cls is not None:
            tokens = torch.cat((self.cls.expand(count, -1, -1), tokens), dim=1)
        if self.positions is not None:
            tokens = tokens + self._resized(self.positions, rows, columns)
        if self.registers is not None:
            registers = self.registers.expand(count, -1, -1)
            cls = self.shape.cls
            tokens = torch.cat((tokens[:, :cls], registers, tokens[:, cls:]), dim=1)
        if self.early_norm is not None:
            tokens = self.early_norm(tokens)
        rotation = self._rotation(rows, columns, tokens) if self.shape.rotary else None
        hidden = {0: tokens}
        for i, block in enumerate(self.blocks):
            tokens = hidden[i + 1] = block(tokens, rotation)
            if i not in self.output.layers:
                del hidden[i]
        return hidden

    def _chosen(self, state: Tensor) -> Tensor:
        if self.output.tokens == "cls":
            return state[:, :1]
        return state if self.output.tokens == "all" else state[:, self.shape.before :]

    def _resized(self, positions: Tensor, rows: int, columns: int) -> Tensor:
        side, cls = self.shape.positions, self.shape.cls
        if rows == columns == side:
            return positions
        grid = positions[:, cls:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        dtype = grid.dtype
        mode, *how = self.shape.resized.split()
        if "float32" in how:
            grid = grid.float()
        antialias = "antialias" in how
        resized = F.interpolate(
            grid, size=(rows, columns), mode=mode, align_corners=False, antialias=antialias
        ).to(dtype)
        return torch.cat((positions[:, :cls], resized.flatten(2).transpose(1, 2)), dim=1)

    def _rotation(self, rows: int, columns: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (tokens, channels of a head): of a patch's centre, in [-1, 1] along
        height and width; what stands before the patches does not turn."""
        channels = self.shape.width // self.shape.heads
        exact = torch.promote_types(like.dtype, torch.float32)
        # In float32 up to here in every type, as published.
        kind: dict[str, Any] = {"dtype": torch.float32, "device": like.device}
        frequencies = 1 / self.shape.rotary ** torch.arange(0, 1, 4 / channels, **kind)
        axes = [2.0 * (torch.arange(0.5, n, **kind) / n) - 1.0 for n in (rows, columns)]
        centres = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * centres[:, :, None]) * frequencies.to(exact)
        angles = F.pad(angles.flatten(1).tile(2), (0, 0, self.shape.before, 0))
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)

    def origins(
        self, layout: Layout, prefix: str, others: Mapping[str, Origin] | None = None
    ) -> dict[str, Origin]:
        """Where each parameter comes from.

        prefix  What stands before a layout's names.
        others  Of those that it does not know, or that come otherwise, by our names.
        """
        names: dict[str, Origin] = {}
        for name, target in self.state_dict().items():
            first, _, rest = name.partition(".")
            if others and name in others:
                names[name] = others[name]
            elif first == "blocks":
                names[name] = _inside(layout, prefix, rest)
            elif first != "head":
                full = ".".join((prefix + layout.outside[first], *filter(None, [rest])))
                loose = first in ("cls", "positions")
                names[name] = _reshaped(full, tuple(target.shape)) if loose else full
        return names


def _inside(layout: Layout, prefix: str, name: str) -> Origin:
    """Where a parameter of a block comes from: 3.attention.query.weight."""
    number, _, rest = name.partition(".")
    part, _, end = rest.rpartition(".")
    if not part or rest in layout.inside:
        part, end = rest, ""
    theirs = layout.inside.get(part, part)
    parts = [theirs] if isinstance(theirs, str) else list(theirs)
    found = [
        ".".join(filter(None, (prefix + layout.blocks.format(number) + part, end)))
        for part in parts
    ]
    if len(found) == 1:
        return found[0]
    return lambda checkpoint: torch.cat([checkpoint.get(part) for part in found])


def _reshaped(name: str, shape: tuple[int, ...]) -> Origin:
    """What some layouts hold without the axes of 1 before it."""

    def read(checkpoint: Checkpoint) -> Tensor:
        value = checkpoint.get(name)
        bare = tuple(value.shape)
        return value.reshape(shape) if bare == shape[len(shape) - len(bare) :] else value

    return read


def shape_numbers(
    checkpoint: Checkpoint, config: Mapping[str, Any], keys: tuple[str, ...]
) -> list[int]:
    """What a config says of a network by `keys`, which begin with TRANSFORMER_KEYS.

    Raises CheckpointError where these are no whole numbers, or do not fit each other.
    """
    said = {key: config.get(key) for key in keys}
    numbers = [n for n in said.values() if type(n) is int and 0 < n < 1 << 16]
    eps = config.get("layer_norm_eps")
    if (
        len(numbers) < len(said)
        or numbers[0] % numbers[2]
        or numbers[1] > MAX_LAYERS
        or ("image_size" in said and numbers[3] > numbers[keys.index("image_size")])
        or not isinstance(eps, float)
        or not 0 < eps < 1
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its config.json has {said} and layer_norm_eps {eps!r}; wanted "
            "whole numbers from 1 up, a hidden_size that is a multiple of the heads, an image no "
            "smaller than its patches, and a small number"
        )
    return numbers


def known_act(checkpoint: Checkpoint, act: Any) -> str:
    """Raises CheckpointError where it is no activation of these networks."""
    if not isinstance(act, str) or act not in ACTIVATIONS:
        raise CheckpointError(
            f"{checkpoint.name}: hidden_act is {act!r}; wanted one of {', '.join(ACTIVATIONS)}"
        )
    return act


def check_config(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where there is none."""
    if not checkpoint.config:
        raise CheckpointError(
            f"{checkpoint.name}: no config.json beside the weights, which says how many heads the "
            "model has; load the folder that holds both"
        )


def check_used(
    checkpoint: Checkpoint, layout: Layout, prefix: str, encoder: VisionTransformer
) -> None:
    """Raises CheckpointError where a block that was filled has more than was read of it, or there
    is one beyond those of the config, whose last one would then be taken for the model's."""
    numbers = (*range(len(encoder.blocks)), encoder.shape.layers)
    checkpoint.check_used(*(prefix + layout.blocks.format(number) for number in numbers))
