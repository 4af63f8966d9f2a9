"""Where the layers of Wan's VAE stand in a checkpoint, and what network they make.

Two layouts: diffusers' (encoder.down_blocks.0.resnets.0.conv1), whose names of a layer's parts are
used here, and the original one (encoder.downsamples.0.residual.2). Wan 2.1 has its blocks and
samplers one after the other; Wan 2.2 groups them into levels, with a shortcut around each.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.errors import CheckpointError
from streamenc.models.videomodel import kernel
from streamenc.models.wan.vaechain import MIDDLE, Kind, Layer, Side, WanChain, WanShape

PATCHES = (1, 2, 4)
# The published code takes so many frames at a time.
MAX_TEMPORAL = 4

_PROJECTIONS = {"encoder": "quant_conv", "decoder": "post_quant_conv"}
# Of a layer's parts, from diffusers' names to the original ones.
_ORIGINAL = {
    "conv_in": "conv1",
    "conv_out": "head.2",
    "norm_out": "head.0",
    **{part: f"middle.{i}" for i, part in enumerate(MIDDLE)},
    "norm1": "residual.0",
    "conv1": "residual.2",
    "norm2": "residual.3",
    "conv2": "residual.6",
    "conv_shortcut": "shortcut",
    "quant_conv": "conv1",
    "post_quant_conv": "conv2",
}
# Of our layers' parts, in both layouts.
_PARTS = {"conv": "resample.1", "to_out": "proj"}
_THIRDS = ("to_q", "to_k", "to_v")


class WanNames:
    """The names of one layout's tensors."""

    def __init__(self, checkpoint: Checkpoint, original: bool) -> None:
        self.checkpoint, self.original = checkpoint, original

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> WanNames | None:
        """None where the tensors are not those of such a VAE."""
        for original, first, last in (
            (False, "conv_in", "norm_out"),
            (True, "conv1", "head.0"),
        ):
            for side in ("encoder", "decoder"):
                weight, gamma = f"{side}.{first}.weight", f"{side}.{last}.gamma"
                if gamma in checkpoint and weight in checkpoint:
                    if len(checkpoint.shape(weight)) == 5:
                        return cls(checkpoint, original)
        return None

    def __call__(self, part: str) -> str:
        return _ORIGINAL.get(part, part) if self.original else part

    def convolution(self, at: str) -> tuple[int, int]:
        """Channels in and out of what stands at a name. Raises CheckpointError."""
        shape = self.checkpoint.shape(f"{at}.weight")
        if len(shape) not in (4, 5) or not all(shape):
            raise CheckpointError(
                f"{self.checkpoint.name}: {at}.weight has shape {shape}; wanted a convolution's, "
                "(channels out, channels in, and its kernel)"
            )
        return shape[1], shape[0]

    def levels(self, side: Side) -> list[list[str]]:
        """Where the layers between the outermost one and the middle stand, level by level; where
        there are no shortcuts around levels, each layer is one."""
        down = side == "encoder"
        inner = ("downsamples" if down else "upsamples") if self.original else "resnets"
        outer = f"{side}.{inner}" if self.original else f"{side}.{'down' if down else 'up'}_blocks"
        samplers = () if self.original else ("downsampler", "upsampler", "upsamplers.0")
        levels: list[list[str]] = []
        while True:
            at = f"{outer}.{len(levels)}"
            found = [at] if self.kind(at) else []
            while not self.kind(at) and self.kind(f"{at}.{inner}.{len(found)}"):
                found.append(f"{at}.{inner}.{len(found)}")
            if not found:
                return levels if _grouped(levels) else [[at] for level in levels for at in level]
            levels.append(found + [f"{at}.{s}" for s in samplers if self.kind(f"{at}.{s}")])

    def kind(self, at: str) -> Kind | None:
        """What layer stands there."""
        if f"{at}.{self('conv1')}.weight" in self.checkpoint:
            return "block"
        return "sampler" if f"{at}.resample.1.weight" in self.checkpoint else None

    def layer(self, at: str, given: int, side: Side) -> Layer:
        """What stands there, where the layer before gives so many channels. Raises CheckpointError
        where it takes others."""
        kind = self.kind(at)
        assert kind is not None
        part = "resample.1" if kind == "sampler" else self("conv1")
        into, out = self.convolution(f"{at}.{part}")
        if into != given or (kind == "sampler" and side == "encoder" and out != into):
            raise CheckpointError(
                f"{self.checkpoint.name}: {at} makes {out} channels of {into}, and the layer "
                f"before it gives {given}; is a layer missing, or the model of another kind?"
            )
        return Layer(kind, into, out, f"{at}.time_conv.weight" in self.checkpoint)

    def check_used(self, side: Side) -> None:
        """Raises CheckpointError where a tensor of a side that was filled belongs to no layer: of
        a network that is read off its tensors, a missing one would otherwise go unnoticed."""
        self.checkpoint.check_used(f"{side}.", f"{self(_PROJECTIONS[side])}.")


def shape_of(names: WanNames, side: Side) -> WanShape:
    """Raises CheckpointError where a side is missing, or of a kind that is not this network."""
    checkpoint = names.checkpoint
    ends: list[tuple[int, int]] = []
    for part in ("conv_in", "conv_out"):
        at = f"{side}.{names(part)}"
        if f"{at}.weight" not in checkpoint:
            raise CheckpointError(
                f"{checkpoint.name} has no {side}: {at}.weight is not among its "
                f"{len(checkpoint.names)} tensors; load the part that is there, or the whole model"
            )
        ends.append(names.convolution(at))
    (first, width), (_, last) = ends
    images, latent = (first, last // 2) if side == "encoder" else (last, first)
    patch = next((p for p in PATCHES if 3 * p**2 == images), 0)
    if not patch:
        raise CheckpointError(
            f"{checkpoint.name}: its {side} has images of {images} channels; wanted 3 colours, in "
            f"patches of {', '.join(map(str, PATCHES))} pixels"
        )
    places, at_hand = names.levels(side), width
    levels: list[tuple[Layer, ...]] = []
    for level in places:
        layers: list[Layer] = []
        for at in level:
            layers.append(names.layer(at, at_hand, side))
            at_hand = layers[-1].out
        levels.append(tuple(layers))
    shape = WanShape(side, patch, width, tuple(levels), _grouped(places), latent)
    if shape.temporal > MAX_TEMPORAL:
        raise CheckpointError(
            f"{checkpoint.name}: its {side} has {shape.temporal} frames to a latent; wanted "
            f"{MAX_TEMPORAL} at most, as the published code takes so many at a time"
        )
    return shape


def _grouped(places: list[list[str]]) -> bool:
    """Whether levels have shortcuts. diffusers groups Wan 2.1's decoder too, with its samplers
    under another name; "encoder.down_blocks.0" is no group."""
    each = [at for level in places for at in level]
    return not any(at.endswith(".upsamplers.0") for at in each) and any(
        at.count(".") > 2 for at in each
    )


def origins(chain: WanChain, names: WanNames) -> dict[str, Origin]:
    """Where each parameter comes from; see `fill`."""
    side = chain.shape.side
    places = names.levels(side)
    found: dict[str, Origin] = {}
    for path, name, layer in chain.named():
        if name.startswith("levels."):
            level, index = map(int, name.split(".")[1:])
            at = places[level][index]
        else:
            at = names(name) if name in _PROJECTIONS.values() else f"{side}.{names(name)}"
        for ours, target in layer.state_dict().items():
            found[f"{path}.{ours}"] = _origin(names, at, ours, tuple(target.shape))
    return found


def _origin(names: WanNames, at: str, ours: str, shape: tuple[int, ...]) -> Origin:
    """Of the parameter that we call `ours` in the layer that stands `at`."""
    part, _, leaf = ours.rpartition(".")
    if part in _THIRDS:
        return _third(f"{at}.to_qkv.{leaf}", _THIRDS.index(part))
    if part:
        at = f"{at}.{_PARTS.get(part, names(part))}"
    if leaf == "gamma":
        return _gamma(f"{at}.gamma")
    read = kernel(f"{at}.{leaf}", shape)
    return _means(read, shape[0]) if at == names("quant_conv") else read


def _third(name: str, index: int) -> Callable[[Checkpoint], Tensor]:
    """Of queries, keys and values in one tensor."""
    return lambda checkpoint: checkpoint.get(name).chunk(3)[index]


def _gamma(name: str) -> Callable[[Checkpoint], Tensor]:
    """A factor for each channel, published with axes of 1 behind."""

    def read(checkpoint: Checkpoint) -> Tensor:
        value = checkpoint.get(name)
        return value.flatten() if value.shape[1:].numel() == 1 else value

    return read


def _means(read: Callable[[Checkpoint], Tensor], count: int) -> Callable[[Checkpoint], Tensor]:
    """Of means and logarithms of variances, the means."""

    def means(checkpoint: Checkpoint) -> Tensor:
        value = read(checkpoint)
        if len(value) != 2 * count:
            raise ValueError(f"it has {len(value)} outputs; wanted a mean and a variance of each")
        return value[:count]

    return means
