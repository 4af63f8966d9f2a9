"""SEANet: the convolutional encoder and decoder that EnCodec and Mimi share, as chains of layers.

The chains number their layers as the published implementations do, activations included, so that
our parameter names turn into those of each published layout by a simple rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Literal, TypeAlias, get_args

from torch import nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.layers.conv.causal import CausalConv1d, CausalConvTranspose1d, PadMode
from streamenc.layers.conv.unit import ResidualUnit
from streamenc.layers.recurrent import SkipLSTM
from streamenc.layers.segment import SegmentConv1d, SegmentConvTranspose1d
from streamenc.layers.streamed import Chain, Residual, Streamed

# "transformers": `layers.3.conv.weight`.
# "original": `model.3.conv.conv.weight`, as the encodec and moshi packages save them.
Layout: TypeAlias = Literal["transformers", "original"]

MAX_SIZE = 1 << 16
MAX_STAGES = 16
MAX_LAYERS = 64

_CONVS = (CausalConv1d, SegmentConv1d)
_TRANSPOSED = (CausalConvTranspose1d, SegmentConvTranspose1d)


@dataclass(frozen=True, slots=True)
class Seanet:
    """The shape of a SEANet encoder and of the decoder that mirrors it.

    channels       Audio channels.
    latent         Channels between encoder and decoder.
    filters        Channels after the first convolution; doubled at each stage.
    ratios         Upsampling factors in the decoder's order; the encoder takes them in reverse.
    compress       By how much a residual block narrows its inside.
    dilation_base  Residual block j of a stage is dilated by dilation_base ** j.
    conv_shortcut  Residual blocks have a 1x1 convolution beside them, not the identity.
    lstm_layers    0 for none.
    causal         False: layers over whole segments, padded on both sides, each convolution with a
                   GroupNorm after it.
    """

    channels: int
    latent: int
    filters: int
    ratios: tuple[int, ...]
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    residual_layers: int = 1
    dilation_base: int = 2
    compress: int = 2
    conv_shortcut: bool = False
    lstm_layers: int = 0
    pad_mode: PadMode = "constant"
    causal: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError where a config makes no network, or none that anybody could hold."""
        sizes = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.type == "int" and field.name != "lstm_layers"
        }
        for name, size in sizes.items():
            if type(size) is not int or not 1 <= size <= MAX_SIZE:
                raise ValueError(f"{name} is {size!r}; wanted a number from 1 to {MAX_SIZE}")
        ratios = self.ratios
        if not 1 <= len(ratios) <= MAX_STAGES or any(type(n) is not int or n < 1 for n in ratios):
            raise ValueError(
                f"upsampling_ratios are {ratios!r:.80}; wanted 1 to {MAX_STAGES} numbers from 1 up"
            )
        if type(self.lstm_layers) is not int or not 0 <= self.lstm_layers <= MAX_LAYERS:
            raise ValueError(f"lstm_layers is {self.lstm_layers!r}; wanted 0 to {MAX_LAYERS}")
        if self.residual_layers > MAX_LAYERS or self.compress > self.filters:
            raise ValueError(
                f"{self.residual_layers} residual layers, {self.filters} filters compressed by "
                f"{self.compress}; wanted at most {MAX_LAYERS}, and no more than the filters"
            )
        reach = self.residual_kernel_size * self.dilation_base ** (self.residual_layers - 1)
        width = self.filters << len(ratios)
        if max(self.hop, reach, width) > MAX_SIZE:
            raise ValueError(
                f"a hop of {self.hop} samples, residual kernels over {reach} and {width} channels; "
                f"wanted at most {MAX_SIZE} of each"
            )
        if self.pad_mode not in get_args(PadMode):
            raise ValueError(f"pad_mode is {self.pad_mode!r}; wanted one of {get_args(PadMode)}")

    @property
    def hop(self) -> int:
        """Samples per latent frame."""
        return math.prod(self.ratios)

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
    ) -> Streamed:
        kind = CausalConv1d if self.causal else SegmentConv1d
        return kind(in_channels, out_channels, kernel_size, stride, pad_mode=self.pad_mode)

    def activated(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
    ) -> tuple[nn.Module, Streamed]:
        """ELU and a convolution, two numbers of a chain. A causal one has its ELU within."""
        sizes = in_channels, out_channels, kernel_size, stride
        if not self.causal:
            conv = SegmentConv1d(*sizes, dilation=dilation, pad_mode=self.pad_mode)
            return nn.ELU(), conv
        return nn.Identity(), CausalConv1d(
            *sizes, dilation=dilation, pad_mode=self.pad_mode, elu=True
        )

    def transposed(self, in_channels: int, out_channels: int, ratio: int) -> Streamed:
        kind = CausalConvTranspose1d if self.causal else SegmentConvTranspose1d
        return kind(in_channels, out_channels, 2 * ratio, ratio)

    def residuals(self, width: int) -> Iterator[Residual]:
        """The residual blocks of one stage."""
        for level in range(self.residual_layers):
            dilation = self.dilation_base**level
            inside = width // self.compress
            narrow = self.activated(width, inside, self.residual_kernel_size, dilation=dilation)
            wide = self.activated(inside, width, 1)
            shortcut = self.conv(width, width, 1) if self.conv_shortcut else None
            if not self.causal:
                yield Residual(Chain([*narrow, *wide]), shortcut)
                continue
            first, second = narrow[1], wide[1]
            assert isinstance(first, CausalConv1d) and isinstance(second, CausalConv1d)
            assert shortcut is None or isinstance(shortcut, CausalConv1d)
            yield ResidualUnit(first, second, shortcut)


def seanet_encoder(net: Seanet) -> Chain:
    """(batch, channels, samples) -> (batch, latent, samples / hop)."""
    width = net.filters
    layers: list[nn.Module] = [net.conv(net.channels, width, net.kernel_size)]
    for ratio in reversed(net.ratios):
        layers += net.residuals(width)
        layers += net.activated(width, 2 * width, 2 * ratio, ratio)
        width *= 2
    if net.lstm_layers:
        layers.append(SkipLSTM(width, net.lstm_layers))
    return Chain([*layers, *net.activated(width, net.latent, net.last_kernel_size)])


def seanet_decoder(net: Seanet) -> Chain:
    """(batch, latent, frames) -> (batch, channels, frames * hop)."""
    width = net.filters * 2 ** len(net.ratios)
    layers: list[nn.Module] = [net.conv(net.latent, width, net.kernel_size)]
    if net.lstm_layers:
        layers.append(SkipLSTM(width, net.lstm_layers))
    for ratio in net.ratios:
        layers += [nn.ELU(), net.transposed(width, width // 2, ratio)]
        width //= 2
        layers += net.residuals(width)
    return Chain([*layers, *net.activated(width, net.channels, net.last_kernel_size)])


def seanet_origins(chain: Chain, prefix: str, layout: Layout, ours: str = "") -> dict[str, Origin]:
    """Where each parameter of `chain` comes from in a checkpoint, weight normalisation folded in.

    prefix  The chain's published name: "encoder", "decoder".
    ours    What stands before its parameters' names in our module, with the dot: "chain.".
    """
    origins: dict[str, Origin] = {}
    for name, layer in chain.named_modules():
        here = f"{ours}{name}"
        there = f"{prefix}.{_published(name, layout)}"
        if isinstance(layer, SkipLSTM):
            for parameter, _ in layer.named_parameters():
                origins[f"{here}.{parameter}"] = f"{there}.{parameter}"
        elif isinstance(layer, (*_CONVS, *_TRANSPOSED)):
            inner = "conv" if layout == "transformers" or isinstance(layer, _CONVS) else "convtr"
            outer = there if layout == "transformers" else f"{there}.{inner}"
            for parameter, _ in layer.named_parameters():
                if parameter == "weight":
                    origins[f"{here}.weight"] = partial(
                        Checkpoint.folded, prefix=f"{outer}.{inner}"
                    )
                elif parameter == "bias":
                    origins[f"{here}.bias"] = f"{outer}.{inner}.bias"
                else:
                    origins[f"{here}.{parameter}"] = f"{outer}.{parameter}"
    return origins


def _published(name: str, layout: Layout) -> str:
    """`layers.1.block.layers.3` -> `layers.1.block.3`, or `model.1.block.3`."""
    name = name.replace(".block.layers.", ".block.")
    return name if layout == "transformers" else "model" + name.removeprefix("layers")
