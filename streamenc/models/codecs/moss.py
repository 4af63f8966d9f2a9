"""MOSS-Audio-Tokenizer: codecs of 12.5 frames a second, of causal transformers alone (OpenMOSS;
arXiv 2602.10934).

Audio, 24 kHz mono or 48 kHz stereo whose channels are interleaved -> patches of samples ->
transformers over a window of some seconds, with patches of two positions between them -> up to 32
residual codebooks of 1,024 entries, each searched in 8 dimensions. Decoding mirrors it.

Layouts: the transformers folders of the large model, its second version and Nano; which layers
there are is read off the config.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.checkpoints.configs import MAX_LAYERS, MAX_SIZE, whole_number
from streamenc.errors import CheckpointError
from streamenc.layers.attention.sliding import Transformer
from streamenc.layers.conv.causal import CausalConv1d
from streamenc.layers.linear import Linear
from streamenc.layers.patches import Patches, Unpatched
from streamenc.layers.quantize import FactorisedVQ
from streamenc.layers.streamed import Chain, Streamed
from streamenc.models import mimi
from streamenc.models.dac.dac import quantizer_origins
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

if TYPE_CHECKING:
    from streamenc.compiled.stepplan import Plan
    from streamenc.compiled.values import AnyValue

FAMILY = "moss-audio-tokenizer"
MAX_STAGES = 64
_TRANSFORMER = re.compile(r"(encoder|decoder)\.\d+\.transformer\.layers\.0\.norm1\.weight")


def _published() -> dict[str, Any]:
    """The config of the large model: its encoder's patches and transformers, and their mirror."""
    wide = {"d_model": 1280, "num_heads": 20, "num_layers": 32, "dim_feedforward": 5120}
    narrow = {"d_model": 768, "num_heads": 12, "num_layers": 12, "dim_feedforward": 3072}
    shared = {
        "module_type": "Transformer",
        "causal": True,
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "max_period": 10_000,
        "gating": "none",
        "layer_scale": 0.01,
    }

    def stage(into: int, out: int, form: dict[str, int]) -> dict[str, Any]:
        return {**shared, **form, "input_dimension": into, "output_dimension": out}

    def patch(size: int) -> dict[str, Any]:
        return {"module_type": "PatchedPretransform", "patch_size": size}

    encoder = [
        *(patch(240), stage(240, 384, narrow), patch(2), stage(768, 384, narrow)),
        *(patch(2), stage(768, 640, narrow), patch(2), stage(1280, 768, wide)),
    ]
    decoder = [
        *(stage(768, 1280, wide), patch(2), stage(640, 768, narrow), patch(2)),
        *(stage(384, 768, narrow), patch(2), stage(384, 240, narrow), patch(240)),
    ]
    return {
        "sampling_rate": 24_000,
        "downsample_rate": 1920,
        "causal_transformer_context_duration": 10,
        "encoder_kwargs": encoder,
        "decoder_kwargs": decoder,
        "quantizer_kwargs": {
            "quantizer_type": "rlfq",
            "input_dim": 768,
            "rvq_dim": 512,
            "output_dim": 768,
            "num_quantizers": 32,
            "codebook_size": 1024,
            "codebook_dim": 8,
        },
    }


@dataclass(frozen=True, slots=True)
class _Stage:
    """A transformer, of which `index` is the place among the published modules.

    positions  How many a frame has.
    """

    index: int
    into: int
    width: int
    out: int
    heads: int
    layers: int
    feed_forward: int
    window: int
    positions: int
    theta: float
    scaled: bool

    def transformer(self) -> Transformer:
        return Transformer(
            self.width,
            self.heads,
            self.feed_forward,
            self.layers,
            self.window,
            max_step=self.positions,
            rope_theta=self.theta,
            scaled=self.scaled,
        )


class _Shape:
    """A config, checked, with the parts that the encoder and the decoder are made of.

    sides  The stages and the sizes of patches of each side, in their order.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        """Raises ValueError or TypeError for a config that makes no sense, or another model."""
        c = {**_published(), **{key: v for key, v in config.items() if v is not None}}
        rate = c["sampling_rate"] if "sampling_rate" in config else c.get("sample_rate", 24_000)
        self.rate = whole_number("sampling_rate", rate, 1 << 20)
        self.hop = whole_number("downsample_rate", c["downsample_rate"])
        self.channels = whole_number("number_channels", c.get("number_channels", 1), 64)
        interleaved = c.get("enable_channel_interleave", True)
        if type(interleaved) is not bool:
            raise ValueError(f"enable_channel_interleave is {interleaved!r}; wanted true or false")
        self.folded = self.channels if interleaved else 1
        q = c["quantizer_kwargs"]
        kind = q.get("quantizer_type", c.get("quantizer_type", "rvq"))
        if kind not in ("rlfq", "random_prefix_rlfq"):
            raise ValueError(f"quantizer_type is {kind!r}; only 'rlfq' is known")
        names = ("input_dim", "rvq_dim", "output_dim", "codebook_size", "codebook_dim")
        self.into, self.inside, self.out, self.entries, self.dim = (
            whole_number(name, q.get(name)) for name in names
        )
        self.levels = whole_number("num_quantizers", q.get("num_quantizers"), 1 << 10)
        if self.dim == self.inside:
            raise ValueError(f"codebook_dim is {self.dim}, as rvq_dim is; wanted fewer dimensions")
        encoder, decoder = (_modules(c[f"{side}_kwargs"]) for side in ("encoder", "decoder"))
        seconds = _least_context(encoder, c["causal_transformer_context_duration"])
        outer, ahead = self.channels // self.folded, self.folded * self.hop
        self.sides = {
            "encoder": _side(encoder, outer, self.into, -1, ahead, self, seconds),
            "decoder": _side(decoder, self.out, outer, 1, 1, self, seconds),
        }
        self.audio = Port("audio", Fraction(self.rate), self.channels)
        self.codes = Port("codes", Fraction(self.rate, self.hop), self.levels, "uint16")

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> _Shape:
        """Raises CheckpointError."""
        try:
            return cls(checkpoint.config)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.name}: its config cannot be used: {error}"
            ) from error

    def quantizer(self) -> FactorisedVQ:
        return FactorisedVQ(self.levels, self.entries, self.dim, self.inside)


def _seconds(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value <= 1e4:
        raise ValueError(f"{name} is {value!r}; wanted a number of seconds above 0, up to 10000")
    return float(value)


def _modules(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or len(value) > MAX_STAGES:
        raise ValueError(f"wanted a list of up to {MAX_STAGES} modules, got {value!r:.60}")
    if wrong := [module for module in value if not isinstance(module, dict)]:
        raise ValueError(f"a module is {wrong[0]!r:.60}; wanted its type and sizes")
    return value


def _least_context(modules: list[dict[str, Any]], seconds: Any) -> float:
    """What a transformer sees that says nothing of it: as little as any of the encoder's does.

    seconds  What these see where they say nothing. Raises ValueError or TypeError.
    """
    name = "causal_transformer_context_duration"
    stages = [module for module in modules if module.get("module_type") == "Transformer"]
    given = [_seconds("context_duration", m.get("context_duration", seconds)) for m in stages]
    return min(given, default=_seconds(name, seconds))


def _side(
    modules: list[dict[str, Any]],
    width: int,
    wanted: int,
    direction: int,
    positions: int,
    shape: _Shape,
    seconds: float,
) -> list[_Stage | int]:
    """The stages of a side, and the sizes of the patches between them.

    width      Channels that come; `wanted` have to go.
    direction  -1 where patches take positions together, 1 where they take them apart.
    positions  How many a frame has at first. Raises ValueError or TypeError.
    """
    frames = Fraction(shape.rate, shape.hop)
    side: list[_Stage | int] = []
    for index, module in enumerate(modules):
        kind = module.get("module_type")
        if kind == "PatchedPretransform":
            size = whole_number("patch_size", module.get("patch_size"))
            whole, left = divmod(positions if direction < 0 else width, size)
            if left:
                raise ValueError(
                    f"a patch of {size} does not divide what comes, {whole * size + left}"
                )
            positions, width = (whole, width * size) if direction < 0 else (positions * size, whole)
            side.append(size)
        elif kind == "Transformer":
            context = _seconds("context_duration", module.get("context_duration", seconds))
            stage = _stage(index, module, round(float(frames * positions) * context), positions)
            if stage.into != width:
                raise ValueError(f"input_dimension is {stage.into}, and {width} channels come")
            width = stage.out
            side.append(stage)
        else:
            raise ValueError(f"module_type is {kind!r}; wanted PatchedPretransform or Transformer")
        if max(width, positions) > MAX_SIZE:
            raise ValueError(f"{width} channels at {positions} positions a frame are too many")
    count = sum(stage.layers for stage in side if isinstance(stage, _Stage))
    whole_number("num_layers of all modules together", count, MAX_LAYERS, 0)
    last = 1 if direction < 0 else shape.folded * shape.hop
    if (width, positions) != (wanted, last):
        raise ValueError(
            f"the modules end with {width} channels and {positions} positions a frame; wanted "
            f"{wanted} and {last}"
        )
    return side


def _stage(index: int, module: dict[str, Any], window: int, positions: int) -> _Stage:
    only = {"causal": True, "norm": "layer_norm", "positional_embedding": "rope", "gating": "none"}
    for key, known in only.items():
        # What is left out is what the published class has.
        default = {"causal": False, "positional_embedding": "sin"}.get(key, known)
        if module.get(key, default) != known:
            raise ValueError(f"{key} is {module.get(key, default)!r}; only {known!r} is known")
    names = ("input_dimension", "d_model", "output_dimension", "num_heads", "dim_feedforward")
    into, width, out, heads, fed = (whole_number(name, module.get(name)) for name in names)
    if width % (2 * heads):
        raise ValueError(f"{heads} heads of an even size do not divide a d_model of {width}")
    theta = module.get("max_period", 10_000)
    if type(theta) not in (int, float) or not 0 < theta <= 1e12:
        raise ValueError(f"max_period is {theta!r}; wanted a number above 0, up to 1e12")
    return _Stage(
        index,
        into,
        width,
        out,
        heads,
        whole_number("num_layers", module.get("num_layers"), MAX_LAYERS),
        fed,
        whole_number("the window of positions", window, 1 << 20),
        positions,
        float(theta),
        module.get("layer_scale") is not None,
    )


def _layers(
    stages: Sequence[_Stage | int], side: str, has: Callable[[str], bool]
) -> list[tuple[str, Streamed]]:
    """The layers of a side, with the published name of each; "" of those that have no tensors.

    has  Whether there is a tensor of a name: projections between equal widths may be left out.
    """
    layers: list[tuple[str, Streamed]] = []
    for stage in stages:
        if isinstance(stage, int):
            layers.append(("", Patches(stage) if side == "encoder" else Unpatched(stage)))
            continue
        there = f"{side}.{stage.index}"
        for name, into, out in (
            ("input_proj", stage.into, stage.width),
            ("", 0, 0),
            ("output_proj", stage.width, stage.out),
        ):
            if not name:
                layers.append((f"{there}.transformer", stage.transformer()))
            elif into != out or has(f"{there}.{name}.weight"):
                layers.append((f"{there}.{name}", CausalConv1d(into, out, 1, bias=False)))
    return layers


class MossEncoder(Model):
    """Audio -> what the codebooks divide up, (batch, rvq_dim, frames); `after` quantises it."""

    def __init__(
        self, shape: _Shape, quantizer: FactorisedVQ, layers: Sequence[tuple[str, Streamed]]
    ) -> None:
        super().__init__()
        self.inside = shape.inside
        self.quantizer = quantizer
        folded = [Unpatched(shape.folded)] if shape.folded > 1 else []
        self.chain = Chain([*folded, *(layer for _, layer in layers)])
        self.spec = StreamSpec(
            name=FAMILY,
            input=shape.audio,
            output=shape.codes,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=shape.entries,
            note="a last frame that is not full ends in zeros; the published code leaves it out",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.inside, 0), state
        if end:
            x = F.pad(x, (0, -x.shape[-1] % self.spec.hop))
        return self.chain.step(x, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, x, state)

    def pages(self, state: State) -> Iterator[Tensor]:
        return self.chain.pages(state)

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        return self.quantizer.encode(
            y, None if codebooks is None else self.check_codebooks(codebooks)
        )


class MossDecoder(Model):
    """Codes -> audio; any number of codebooks from 1 up."""

    def __init__(
        self, shape: _Shape, quantizer: FactorisedVQ, layers: Sequence[tuple[str, Streamed]]
    ) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.project = Linear(shape.levels * (shape.dim + 1), shape.inside, rows=1)
        folded = [Patches(shape.folded)] if shape.folded > 1 else []
        self.chain = Chain([*(layer for _, layer in layers), *folded])
        self.spec = StreamSpec(
            name=FAMILY,
            input=shape.codes,
            output=shape.audio,
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            codebook_size=shape.entries,
        )

    def before(self, x: Signal) -> Tensor:
        codes = self.check_codes(super().before(x))
        return self.quantizer.vectors(codes).to(self.like.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[-1]:
            return x.new_zeros(x.shape[0], self.spec.output.channels, 0), state
        latents = self.project(x.transpose(1, 2)).transpose(1, 2)
        return self.chain.step(latents, state, end=end)

    def lower(self, plan: Plan, x: AnyValue, state: State) -> AnyValue:
        return self.chain.lower(plan, plan.linear(x, self.project), state)

    def pages(self, state: State) -> Iterator[Tensor]:
        return self.chain.pages(state)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of the tokenizer."""
    book = "quantizer.quantizers.0.codebook.weight"
    return book in checkpoint and any(map(_TRANSFORMER.fullmatch, checkpoint.names))


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of the large model promises."""
    shape = _Shape({})
    with torch.device("meta"):
        layers = _encoder_layers(shape, lambda name: False)
        return MossEncoder(shape, shape.quantizer(), layers).spec


def load(name: str, checkpoint: Checkpoint, part: str) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, as `part` asks for them, sharing their codebooks."""
    shape = _Shape.of(checkpoint)
    with torch.device("meta"):
        quantizer = shape.quantizer()
    fill(quantizer, quantizer_origins(quantizer), checkpoint)
    checkpoint.check_used(f"quantizer.quantizers.{quantizer.levels}.")
    encoder: MossEncoder | None = None
    decoder: MossDecoder | None = None
    if part in ("both", "encoder"):
        with torch.device("meta"):
            layers = _encoder_layers(shape, checkpoint.__contains__)
            encoder = MossEncoder(shape, quantizer, layers)
        _fill(encoder, layers, "encoder", 1 if shape.folded > 1 else 0, checkpoint)
    if part in ("both", "decoder"):
        with torch.device("meta"):
            layers = _decoder_layers(shape, checkpoint.__contains__)
            decoder = MossDecoder(shape, quantizer, layers)
        _fill(decoder, layers, "decoder", 0, checkpoint)
        fill(decoder.project, {"weight": lambda _: quantizer.joined_weight()}, checkpoint)
    return encoder, decoder


def _encoder_layers(shape: _Shape, has: Callable[[str], bool]) -> list[tuple[str, Streamed]]:
    layers = _layers(shape.sides["encoder"], "encoder", has)
    if shape.into != shape.inside:
        layers.append(("quantizer.input_proj", CausalConv1d(shape.into, shape.inside, 1)))
    return layers


def _decoder_layers(shape: _Shape, has: Callable[[str], bool]) -> list[tuple[str, Streamed]]:
    layers = _layers(shape.sides["decoder"], "decoder", has)
    if shape.inside != shape.out:
        first = CausalConv1d(shape.inside, shape.out, 1)
        layers.insert(0, ("quantizer.output_proj", first))
    return layers


def _fill(
    model: MossEncoder | MossDecoder,
    layers: Sequence[tuple[str, Streamed]],
    part: str,
    skipped: int,
    checkpoint: Checkpoint,
) -> None:
    """Raises CheckpointError, also where a part has tensors that nothing was made of.

    skipped  Layers of the chain before these.
    """
    for (there, _), layer in zip(layers, list(model.chain.layers)[skipped:], strict=False):
        if isinstance(layer, Transformer):
            origins: dict[str, Origin] = {}
            for index in range(len(layer.layers)):
                origins |= _layer_origins(layer, index, f"{there}.layers.{index}", checkpoint)
            fill(layer, origins, checkpoint)
        elif there:
            fill(layer, _pointwise(there, layer), checkpoint)
    checkpoint.check_used(f"{part}.")


def _pointwise(there: str, layer: nn.Module) -> dict[str, Origin]:
    """A linear layer, or a convolution with a kernel of 1 whose norm is folded in."""
    shape = (*layer.state_dict()["weight"].shape,)
    origins: dict[str, Origin] = {"weight": lambda c: c.folded(there).reshape(*shape)}
    if "bias" in layer.state_dict():
        origins["bias"] = f"{there}.bias"
    return origins


def _layer_origins(
    layer: Transformer, index: int, there: str, checkpoint: Checkpoint
) -> dict[str, Origin]:
    def one_of(*names: str) -> str:
        """The first that is there: the versions of the published code name some otherwise."""
        return next(
            (f"{there}.{n}" for n in names if f"{there}.{n}" in checkpoint), f"{there}.{names[0]}"
        )

    in_proj = one_of("self_attn.in_projs.0.weight", "self_attn.in_proj.weight")
    origins: dict[str, Origin] = {
        "in_proj.weight": mimi.half_pairs(in_proj, layer.heads),
        "out_proj.weight": one_of("self_attn.out_projs.0.weight", "self_attn.out_proj.weight"),
        "linear1.weight": one_of("linear1.weight", "ffn.0.weight"),
        "linear2.weight": one_of("linear2.weight", "ffn.2.weight"),
    }
    for norm in ("norm1", "norm2"):
        origins |= {f"{norm}.{p}": f"{there}.{norm}.{p}" for p in ("weight", "bias")}
    if f"layers.{index}.scale1" in layer.state_dict():
        origins |= {f"scale{n}": f"{there}.layer_scale_{n}.scale" for n in (1, 2)}
    return {f"layers.{index}.{ours}": origin for ours, origin in origins.items()}
