"""The convolutional encoder and decoder of DAC, which other codecs have in shapes of their own.

The chains number their layers as descript-audio-codec does, activations included, so that our
parameter names turn into those of each published layout by a simple rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

from torch import nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin
from streamenc.checkpoints.configs import MAX_SIZE, whole_number
from streamenc.layers.activation import Snake
from streamenc.layers.conv.centred import CentredConv1d, CentredConvTranspose1d
from streamenc.layers.streamed import Chain, Residual

# "transformers": `block.0.res_unit1.conv1.weight`, plain or with weight normalisation.
# "original": `block.1.block.0.block.1.weight_g`, as descript-audio-codec and snac save them.
Layout: TypeAlias = Literal["transformers", "original"]

DILATIONS = (1, 3, 9)
MAX_STAGES = 16


@dataclass(frozen=True, slots=True)
class DacNet:
    """The shape of an encoder and of a decoder.

    channels         Audio channels.
    latent           Channels that the encoder gives, and that the decoder takes.
    encoder_width    Channels after the encoder's first convolution; doubled at each stage.
    encoder_strides  In the encoder's order: DAC has the smallest first, X-Codec the largest.
    decoder_width    Channels after the decoder's first convolution; halved at each stage.
    decoder_strides  In the decoder's order.
    output_padding   Odd strides give whole multiples of the stride; DAC itself loses one position
                     at the end of the stream with each.
    tanh             The decoder's output goes through one, as DAC's.
    """

    latent: int
    encoder_width: int
    encoder_strides: tuple[int, ...]
    decoder_width: int
    decoder_strides: tuple[int, ...]
    channels: int = 1
    output_padding: bool = False
    tanh: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError where a config makes no network, or none that anybody could hold."""
        for name in ("channels", "latent", "encoder_width", "decoder_width"):
            whole_number(name, getattr(self, name))
        for name in ("encoder_strides", "decoder_strides"):
            strides = getattr(self, name)
            if not 1 <= len(strides) <= MAX_STAGES or any(
                type(n) is not int or n < 1 for n in strides
            ):
                raise ValueError(
                    f"{name} are {strides!r:.80}; wanted 1 to {MAX_STAGES} numbers from 1 up"
                )
        if math.prod(self.encoder_strides) != math.prod(self.decoder_strides):
            raise ValueError(
                f"strides down are {self.encoder_strides}, and up {self.decoder_strides}; wanted "
                "the same product of both"
            )
        stages = len(self.decoder_strides)
        if self.decoder_width % 2**stages:
            raise ValueError(
                f"decoder_width is {self.decoder_width}; wanted a number that can be halved "
                f"{stages} times, once at each stage"
            )
        widest = self.encoder_width << len(self.encoder_strides)
        if max(self.hop, widest) > MAX_SIZE:
            raise ValueError(
                f"a hop of {self.hop} samples and {widest} channels; wanted at most {MAX_SIZE} of "
                "each"
            )

    @property
    def hop(self) -> int:
        """Samples for each frame of latents."""
        return math.prod(self.encoder_strides)


def dac_encoder(net: DacNet) -> Chain:
    """(batch, channels, samples) -> (batch, latent, samples / hop)."""
    width = net.encoder_width
    layers: list[nn.Module] = [CentredConv1d(net.channels, width, 7)]
    for stride in net.encoder_strides:
        layers.append(down_block(width, 2 * width, stride))
        width *= 2
    return Chain([*layers, Snake(width), CentredConv1d(width, net.latent, 3)])


def dac_decoder(net: DacNet) -> Chain:
    """(batch, latent, frames) -> (batch, channels, samples)."""
    width = net.decoder_width
    layers: list[nn.Module] = [CentredConv1d(net.latent, width, 7)]
    for stride in net.decoder_strides:
        extra = stride % 2 if net.output_padding else 0
        layers.append(up_block(width, width // 2, stride, output_padding=extra))
        width //= 2
    layers += [Snake(width), CentredConv1d(width, net.channels, 7)]
    return Chain([*layers, nn.Tanh()] if net.tanh else layers)


def residual_unit(width: int, dilation: int, *, depthwise: bool = False) -> Residual:
    return Residual(
        Chain(
            [
                Snake(width),
                CentredConv1d(width, width, 7, dilation=dilation, groups=width if depthwise else 1),
                Snake(width),
                CentredConv1d(width, width, 1),
            ]
        )
    )


def down_block(width: int, out_width: int, stride: int, *, depthwise: bool = False) -> Chain:
    """Three residual units, then the stride."""
    units = [residual_unit(width, dilation, depthwise=depthwise) for dilation in DILATIONS]
    down = CentredConv1d(width, out_width, 2 * stride, stride, padding=-(-stride // 2))
    return Chain([*units, Snake(width), down])


def up_block(
    width: int,
    out_width: int,
    stride: int,
    *,
    output_padding: int = 0,
    depthwise: bool = False,
    beside: nn.Module | None = None,
) -> Chain:
    """The stride, then three residual units; `beside` stands between them (SNAC's noise)."""
    up = CentredConvTranspose1d(
        width,
        out_width,
        2 * stride,
        stride,
        padding=-(-stride // 2),
        output_padding=output_padding,
    )
    units = [residual_unit(out_width, dilation, depthwise=depthwise) for dilation in DILATIONS]
    return Chain([Snake(width), up, *([beside] if beside is not None else []), *units])


def dac_origins(chain: Chain, prefix: str, layout: Layout, ours: str = "") -> dict[str, Origin]:
    """Where each parameter of `chain` comes from in a checkpoint, weight normalisation folded in.

    chain   Of `dac_encoder` or `dac_decoder`.
    prefix  The chain's published name: "encoder", "decoder", "acoustic_encoder".
    ours    What stands before its parameters' names in our module, with the dot: "chain.".
    """
    origins: dict[str, Origin] = {}
    for name, _ in chain.named_parameters():
        path, kind = name.rsplit(".", 1)
        numbers = [int(part) for part in path.split(".") if part.isdigit()]
        there = f"{prefix}.{_PLACES[layout](chain, numbers)}"
        origins[ours + name] = (
            partial(Checkpoint.folded, prefix=there) if kind == "weight" else f"{there}.{kind}"
        )
    return origins


def _original(chain: Chain, numbers: list[int]) -> str:
    """[1, 0, 1] -> `block.1.block.0.block.1` in an encoder, `model.1.block.0.block.1` in a
    decoder."""
    outer = "model" if _raises(chain) else "block"
    return ".".join([f"{outer}.{numbers[0]}", *(f"block.{number}" for number in numbers[1:])])


def _transformers(chain: Chain, numbers: list[int]) -> str:
    """[1, 0, 1] -> `block.0.res_unit1.conv1` in an encoder, [1, 2, 1] in a decoder."""
    stages = sum(isinstance(layer, Chain) for layer in chain.layers)
    stage, *inner = numbers
    if not inner:
        return {0: "conv1", stages + 1: "snake1", stages + 2: "conv2"}[stage]
    place, *unit = inner
    around = ["snake1", "conv_t1"] if _raises(chain) else ["snake1", "conv1"]
    units = [f"res_unit{number + 1}" for number in range(len(DILATIONS))]
    names = [*around, *units] if _raises(chain) else [*units, *around]
    parts = [f"block.{stage - 1}", names[place]]
    return ".".join(parts + [("snake1", "conv1", "snake2", "conv2")[n] for n in unit])


_PLACES = {"original": _original, "transformers": _transformers}


def _raises(chain: Chain) -> bool:
    """Whether it is a decoder's."""
    return any(isinstance(layer, CentredConvTranspose1d) for layer in chain.modules())
