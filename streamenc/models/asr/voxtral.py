"""Voxtral Realtime: the encoder of the speech recogniser, 50 states a second (Mistral AI, 2026).

Audio, 16 kHz mono -> log-mel whose floor lies below a fixed maximum -> two causal convolutions
(50 Hz) -> a causal transformer, each layer over the last 750 states. All of it was trained so:
the stream equals the published encoder, without any look-ahead beyond half a window of the log-mel.

The language model gets four states at a time through two linear layers, 12.5 embeddings a second:
output="embeddings". What fills no log-mel frame, no state and no group of four at the end is left
out, as published; its processor pads clips with silence before that.

Layouts: the transformers folder, whole or its encoder alone, and Mistral's own names
(consolidated.safetensors). The language model is neither read nor run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial

import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.attention.sliding import Transformer
from streamenc.layers.conv.causal import ValidConv1d
from streamenc.layers.linear import Linear
from streamenc.layers.patches import Patches
from streamenc.layers.streamed import Chain
from streamenc.models.asr.shared import (
    LogMelModel,
    OverChannels,
    checked_number,
    checked_sizes,
    nested,
    refuse_others,
    stacked,
)
from streamenc.models.mel import PRESETS, WHISPER_LOG_MAX, MelEncoder
from streamenc.models.model import Model
from streamenc.options import choice
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

RATE = 16_000
STATE_SAMPLES = 320
OUTPUTS = ("states", "embeddings")
# Of the published model, for Mistral's own file, beside which no config lies.
HEAD_DIM, WINDOW, ROPE_THETA, NORM_EPS = 64, 750, 1e6, 1e-5
MAX_BANDS = PRESETS["whisper"].n_fft // 2 + 1
BIASES = ("in_proj", "out_proj", "linear2")
_ORIGINAL = "mm_streams_embeddings.embedding_module.whisper_encoder."
_ORIGINAL_PROJECTION = "mm_streams_embeddings.embedding_module.audio_language_projection."
_PREFIXES = ("model.audio_tower.", "audio_tower.", "")


@dataclass(frozen=True, slots=True)
class VoxtralShape:
    """Sizes of an encoder.

    window   States that a state sees in each layer, its own among them.
    group    States of an embedding; `embedding`: its channels, 0 where states come out.
    log_max  What stands for the log10 of the clip's loudest bin.
    """

    bands: int = 128
    width: int = 1280
    heads: int = 32
    head_dim: int = HEAD_DIM
    hidden: int = 5120
    layers: int = 32
    window: int = WINDOW
    rope_theta: float = ROPE_THETA
    eps: float = NORM_EPS
    group: int = 4
    embedding: int = 0
    log_max: float = WHISPER_LOG_MAX


class VoxtralEncoder(LogMelModel):
    """16 kHz audio -> states (batch, width, states) at 50 Hz, or embeddings at 12.5 Hz.

    State: of the log-mel, of the convolutions, and of all behind them.
    """

    def __init__(self, shape: VoxtralShape, chain: Chain) -> None:
        super().__init__()
        self.shape, self.chain = shape, chain
        self.mel = MelEncoder(replace(PRESETS["whisper"], bands=shape.bands, log_max=shape.log_max))
        steps = self.steps
        self.spec = StreamSpec(
            name="voxtral_realtime",
            input=Port("audio", Fraction(RATE), 1),
            output=Port(
                "features",
                Fraction(RATE * steps.hop_out, steps.hop),
                shape.embedding or shape.width,
            ),
            steps=steps,
            equality="offline",
            receptive_field=self.receptive_field(),
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        nothing = x.new_zeros(x.shape[0], self.spec.output.channels, 0)
        if state is None and x.shape[-1] < PRESETS["whisper"].hop:
            return nothing, None
        heard, front, back = state if isinstance(state, tuple) else (None, None, None)
        convolutions, layers = self.chain.layers
        assert isinstance(convolutions, Chain) and isinstance(layers, Chain)
        frames, heard = self.mel.step(x, heard, end=end)
        weight = next(convolutions.parameters())
        states, front = convolutions.step(frames.to(weight.dtype), front, end=end)
        if not states.shape[-1]:
            return nothing, (heard, front, back)
        y, back = layers.step(states, back, end=end)
        return y.to(x.dtype), (heard, front, back)

    def pages(self, state: State) -> Iterator[Tensor]:
        assert isinstance(state, tuple)
        _, layers = self.chain.layers
        assert isinstance(layers, Chain)
        return layers.pages(state[2])


def _unfilled(shape: VoxtralShape) -> VoxtralEncoder:
    """The encoder whose weights lie on no device yet."""
    with torch.device("meta"):
        chain = Chain([Chain(_convolutions(shape)), Chain(_layers(shape))])
    return VoxtralEncoder(shape, chain)


def _convolutions(shape: VoxtralShape) -> list[nn.Module]:
    """From the log-mel to states."""
    return [
        ValidConv1d(shape.bands, shape.width, 3, before=2),
        nn.GELU(),
        ValidConv1d(shape.width, shape.width, 3, 2, before=1),
        nn.GELU(),
    ]


def _layers(shape: VoxtralShape) -> list[nn.Module]:
    """All behind them."""
    width = shape.width
    layers: list[nn.Module] = [
        Transformer(
            width,
            shape.heads,
            shape.hidden,
            shape.layers,
            shape.window,
            max_step=shape.group,
            rope_theta=shape.rope_theta,
            norm_eps=shape.eps,
            head_dim=shape.head_dim,
            norm="rms",
            gated=True,
            scaled=False,
            biases=BIASES,
        ),
        OverChannels(nn.RMSNorm(width, eps=shape.eps)),
    ]
    if shape.embedding:
        layers += [
            Patches(shape.group, stacked=True),
            OverChannels(Linear(shape.group * width, shape.embedding)),
            nn.GELU(),
            OverChannels(Linear(shape.embedding, shape.embedding)),
        ]
    return layers


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of the published model promises: "" its states, as by default."""
    return _unfilled(VoxtralShape()).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return _prefix(checkpoint) is not None


def load(
    name: str, checkpoint: Checkpoint, part: str, *, output: str = "states"
) -> tuple[Model, None]:
    """The encoder; the language model is not read. The option also comes as a string.

    output  "states", 50 a second, or "embeddings", 12.5 a second, as the language model gets them:
            four states each through two linear layers, which are not read otherwise.

    Raises UsageError for another option, CheckpointError for weights that do not fit.
    """
    if part == "decoder":
        raise UsageError(
            f"{name}: only Voxtral's encoder is here, and its decoder writes text; load the encoder"
        )
    embeddings = choice("output", output, OUTPUTS) == "embeddings"
    prefix = _prefix(checkpoint)
    if prefix is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in "
            f"Voxtral Realtime (audio_tower.{_STEM} or {_ORIGINAL}{_ORIGINAL_STEM})"
        )
    names = _Names(prefix)
    shape = _shape(checkpoint, names)
    if embeddings:
        first = f"{names.projection}.{names.linears[0]}.weight"
        if first not in checkpoint:
            raise CheckpointError(
                f"{checkpoint.name}: {first} is missing, which makes embeddings of states: is this "
                "the encoder alone? Load the whole model, or its states"
            )
        shape = replace(shape, embedding=checkpoint.shape(first, 1)[0])
    encoder = _unfilled(shape)
    fill(encoder.chain, _origins(encoder.chain, names, shape), checkpoint)
    checkpoint.check_used(prefix)
    return encoder, None


class _Names:
    """A layout's names: what stands before the encoder's, and how they go on."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.original = prefix == _ORIGINAL
        if self.original:
            self.convolutions = [f"{prefix}conv_layers.{n}.conv" for n in (0, 1)]
            self.layers, self.norm = f"{prefix}transformer.layers", f"{prefix}transformer.norm"
            self.projection = _ORIGINAL_PROJECTION.removesuffix(".")
            self.linears = ("0", "2")
            self.inner = {
                "norm1": "attention_norm",
                "norm2": "ffn_norm",
                "out_proj": "attention.wo",
                "linear2": "feed_forward.w2",
            }
            self.attended = [f"attention.w{which}" for which in "qkv"]
            self.gated = ["feed_forward.w1", "feed_forward.w3"]
        else:
            self.convolutions = [f"{prefix}embedder.conv{n}" for n in (1, 2)]
            self.layers, self.norm = f"{prefix}layers", f"{prefix}norm"
            self.projection = f"{prefix.removesuffix('audio_tower.')}multi_modal_projector"
            self.linears = ("linear_1", "linear_2")
            self.inner = {
                "norm1": "self_attn_layer_norm",
                "norm2": "final_layer_norm",
                "out_proj": "self_attn.o_proj",
                "linear2": "mlp.down_proj",
            }
            self.attended = [f"self_attn.{which}_proj" for which in "qkv"]
            self.gated = ["mlp.gate_proj", "mlp.up_proj"]


_STEM, _ORIGINAL_STEM = "embedder.conv1.weight", "conv_layers.0.conv.weight"


def _prefix(checkpoint: Checkpoint) -> str | None:
    """What stands before the encoder's names; None for another model."""
    if _ORIGINAL + _ORIGINAL_STEM in checkpoint:
        return _ORIGINAL
    gate = "layers.0.mlp.gate_proj.weight"
    return next(
        (
            prefix
            for prefix in _PREFIXES
            if prefix + _STEM in checkpoint and prefix + gate in checkpoint
        ),
        None,
    )


def _shape(checkpoint: Checkpoint, names: _Names) -> VoxtralShape:
    """Raises CheckpointError where config or tensors give no network, or another one."""
    if names.original and not checkpoint.config:
        return _shape_of_tensors(checkpoint, names)
    config = nested(checkpoint, "audio_config")
    refuse_others(checkpoint, config, {"hidden_act": "silu"})
    refuse_others(checkpoint, checkpoint.config, {"projector_hidden_act": "gelu"})
    bands, width, hidden, layers, heads, head_dim, window = checked_sizes(
        checkpoint,
        config,
        num_mel_bins=128,
        hidden_size=1280,
        intermediate_size=5120,
        num_hidden_layers=32,
        num_attention_heads=32,
        head_dim=HEAD_DIM,
        sliding_window=WINDOW,
    )
    refuse_others(checkpoint, config, {"num_key_value_heads": heads})
    (group,) = checked_sizes(checkpoint, checkpoint.config, downsample_factor=4)
    if "sliding_window" in config and config["sliding_window"] is None:
        raise CheckpointError(
            f"{checkpoint.name}: its config has sliding_window=null: its attention sees all the "
            "past, and a stream's state would grow without an end"
        )
    rope = config.get("rope_parameters") or config
    if not isinstance(rope, dict) or rope.get("rope_type", "default") != "default":
        raise CheckpointError(
            f"{checkpoint.name}: its config has rope_parameters={rope!r:.120}; only plain rotary "
            "positions are known, of rope_type default"
        )
    theta = checked_number(checkpoint, rope, "rope_theta", 10_000.0, 1, 1e12)
    eps = checked_number(checkpoint, config, "rms_norm_eps", NORM_EPS, 0, 1)
    # null takes the loudest bin of each clip.
    loudest = checked_number(
        checkpoint, checkpoint.preprocessor, "global_log_mel_max", WHISPER_LOG_MAX, -1000, 1000
    )
    if head_dim % 2 or bands > MAX_BANDS:
        raise CheckpointError(
            f"{checkpoint.name}: its config has head_dim={head_dim} and num_mel_bins={bands}; "
            f"wanted an even number, and up to {MAX_BANDS}"
        )
    return VoxtralShape(
        bands, width, heads, head_dim, hidden, layers, window, theta, eps, group, 0, loudest
    )


def _shape_of_tensors(checkpoint: Checkpoint, names: _Names) -> VoxtralShape:
    """Of Mistral's own file, with what the published model has where tensors do not say it."""
    width, bands = checkpoint.shape(f"{names.convolutions[0]}.weight", 2)[:2]
    first = f"{names.layers}.0"
    rows = checkpoint.shape(f"{first}.{names.attended[0]}.weight", 1)[0]
    hidden = checkpoint.shape(f"{first}.{names.gated[0]}.weight", 1)[0]
    start = f"{names.layers}."
    layers = {n[len(start) :].split(".")[0] for n in checkpoint.names if n.startswith(start)}
    if rows % HEAD_DIM or not 1 <= bands <= MAX_BANDS:
        raise CheckpointError(
            f"{checkpoint.name}: queries of {rows} numbers and {bands} bands; wanted heads of "
            f"{HEAD_DIM} and up to {MAX_BANDS} bands, as without a config.json they are taken to be"
        )
    return VoxtralShape(bands, width, rows // HEAD_DIM, HEAD_DIM, hidden, len(layers))


def _origins(chain: Chain, names: _Names, shape: VoxtralShape) -> dict[str, Origin]:
    """Where each parameter comes from."""
    linears = [f"{names.projection}.{which}" for which in names.linears]
    outer = {
        "layers.0.layers.0": names.convolutions[0],
        "layers.0.layers.2": names.convolutions[1],
        "layers.1.layers.1.module": names.norm,
        "layers.1.layers.3.module": linears[0],
        "layers.1.layers.5.module": linears[1],
    }
    origins: dict[str, Origin] = {}
    for name in chain.state_dict():
        owner, _, kind = name.rpartition(".")
        _, _, inner = name.partition("layers.1.layers.0.layers.")
        if not inner:
            origins[name] = f"{outer[owner]}.{kind}"
            continue
        number, layer, kind = inner.split(".")
        there = f"{names.layers}.{number}"
        if layer == "in_proj":
            turned = shape.heads if names.original else 0
            parts = [f"{there}.{part}" for part in names.attended]
            origins[name] = partial(_projections, parts, kind, turned)
        elif layer == "linear1":
            gated = [f"{there}.{part}.{kind}" for part in names.gated]
            origins[name] = partial(stacked, gated)
        else:
            origins[name] = f"{there}.{names.inner[layer]}.{kind}"
    return origins


def _projections(parts: list[str], kind: str, heads: int, checkpoint: Checkpoint) -> Tensor:
    """Of queries, keys and values; keys have no bias.

    heads  Where rotary positions turn neighbours (2 i, 2 i + 1), as in Mistral's own layout, the
           rows of so many heads are put in the order in which (i, i + head_dim / 2) are turned.
    """
    query, key, value = (f"{part}.{kind}" for part in parts)
    q, v = checkpoint.get(query), checkpoint.get(value)
    k = torch.zeros_like(q) if kind == "bias" else checkpoint.get(key)
    if heads:
        q, k = (x.view(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape) for x in (q, k))
    return torch.cat((q, k, v))
