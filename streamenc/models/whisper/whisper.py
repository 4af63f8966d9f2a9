"""Whisper: the encoder of the speech recogniser, 50 states a second (OpenAI, arXiv 2212.04356).

Audio, 16 kHz mono -> log-mel (100 Hz) -> two convolutions (50 Hz) -> absolute positions ->
transformer. The published encoder sees 30 s at once, padded with zeros, in both directions, so no
stream can equal it offline. There are two modes, each equal to its own definition run offline:

"window"   At each hop the published encoder over the last 30 s, padded as published.
"chunked"  Attention in chunks: a state sees its own chunk, some before it, whose keys and values
           are kept, and what lies ahead of it. Each second costs the same.

What lies ahead of a chunk is computed along with it, and once more with its own chunk. Look-ahead
that is added layer by layer computes nothing twice, but does little for Whisper, whose last layers
need it most.

Layouts: the transformers folder (openai/whisper-tiny to -large-v3, whole or only its encoder), and
OpenAI's own `.pt` files. The text decoder is neither read nor run here; examples/live_captions.py
shows transformers' decoder on streamed states.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.mel import PRESETS, MelEncoder
from streamenc.models.model import Model
from streamenc.models.whisper.modes import (
    ChunkedEncoder,
    WhisperNet,
    WhisperOptions,
    WhisperShape,
    WindowEncoder,
    seconds,
)
from streamenc.options import choice, integer
from streamenc.spec import StreamSpec

MODES = ("chunked", "window")
MS = 20  # of a state
LEFT_STATES = 500  # of 10 s: beyond 4 s the word errors are about the same
HEAD_DIM = 64  # of every published size
MOST = 1 << 31
# Of the published sizes: width, layers, log-mel bands.
PUBLISHED: dict[str, tuple[int, int, int]] = {
    "tiny": (384, 4, 80),
    "base": (512, 6, 80),
    "small": (768, 12, 80),
    "medium": (1024, 24, 80),
    "large": (1280, 32, 80),
    "large-v3": (1280, 32, 128),
}
# What stands before the names of the encoder's tensors.
_PREFIXES = ("model.encoder.", "encoder.", "")
# Their names, in the layout of transformers and in OpenAI's own.
_POSITIONS = {"transformers": "embed_positions.weight", "original": "positional_embedding"}
_NORM = {"transformers": "layer_norm", "original": "ln_post"}
_LAYERS = {"transformers": "layers", "original": "blocks"}
_PROJECTIONS = {
    "transformers": [f"self_attn.{name}_proj" for name in "qkv"],
    "original": [f"attn.{name}" for name in ("query", "key", "value")],
}
_LAYER = {
    "transformers": {
        "norm1": "self_attn_layer_norm",
        "out_proj": "self_attn.out_proj",
        "norm2": "final_layer_norm",
        "linear1": "fc1",
        "linear2": "fc2",
    },
    "original": {
        "norm1": "attn_ln",
        "out_proj": "attn.out",
        "norm2": "mlp_ln",
        "linear1": "mlp.0",
        "linear2": "mlp.2",
    },
}


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published size, "tiny" to "large-v3", promises with the default
    options."""
    shape = _published(variant)
    options = _options(shape)
    with torch.device("meta"):
        net = WhisperNet(shape, options)
    return _encoder(shape, options, net).spec


def _published(size: str) -> WhisperShape:
    width, layers, bands = PUBLISHED[size]
    return WhisperShape(bands, width, width // HEAD_DIM, 4 * width, layers)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of Whisper's layouts."""
    return _layout(checkpoint) is not None


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    mode: str = "chunked",
    chunk_ms: Any = None,
    left: Any = None,
    hop_ms: Any = None,
    ahead_ms: Any = None,
    emit: str = "hop",
    layer: Any = None,
    layers: Any = None,
) -> tuple[Model, None]:
    """The encoder; the text decoder is not read. All options also come as strings.

    mode      "chunked" or "window"; see the module.
    ahead_ms  How much sound behind the states of a step they see at least. In "chunked" 1000 by
              default; in "window" a multiple of the hop, by default none.
    layer, layers  The hidden states that come out, in this order: 3, "1,3", [0, -1] or "all". 0 is
              what the first layer takes, -1 the last layer's behind the final norm, which is the
              default. Several lie one below the other. Later layers are neither read nor run.

    For "chunked":

    chunk_ms  The longest time that a state's own chunk makes it wait, 1000 by default.
    left      Chunks before its own that a state sees; None for 10 s of them.

    For "window":

    hop_ms    From window to window, a whole part of 30 s, 1000 by default.
    emit      "hop": each state once. "window": each step gives all 1500 states of its window, as
              the text decoder wants them.

    All times are multiples of 20 ms. Raises UsageError for options that do not go together,
    CheckpointError for weights that do not fit.
    """
    if part == "decoder":
        raise UsageError(
            f"{name}: only Whisper's encoder is here, and its decoder writes text; load the encoder"
        )
    layout = _found(checkpoint)
    shape = _shape(checkpoint, *layout)
    options = _options(shape, mode, chunk_ms, left, hop_ms, ahead_ms, emit, layer, layers)
    return _encoder(shape, options, _filled(checkpoint, layout, shape, options)), None


def whole_windows(checkpoint: Checkpoint) -> WindowEncoder:
    """The published encoder on one window after the other, as models have it that Whisper is a part
    of. Raises CheckpointError."""
    layout = _found(checkpoint)
    shape = _shape(checkpoint, *layout)
    net = _filled(checkpoint, layout, shape, _one_by_one(shape))
    return WindowEncoder(shape, _one_by_one(shape), _mel(shape), net)


def published_windows(size: str) -> WindowEncoder:
    """The same of a published size, without weights."""
    shape = _published(size)
    options = _one_by_one(shape)
    with torch.device("meta"):
        net = WhisperNet(shape, options)
    return WindowEncoder(shape, options, _mel(shape), net)


def _one_by_one(shape: WhisperShape) -> WhisperOptions:
    return WhisperOptions("window", shape.positions, 0, 0, True, (shape.layers,))


def _filled(
    checkpoint: Checkpoint, layout: tuple[str, str], shape: WhisperShape, options: WhisperOptions
) -> WhisperNet:
    with torch.device("meta"):
        net = WhisperNet(shape, options)
    fill(net, _origins(net, shape, *layout), checkpoint)
    return net


def _encoder(
    shape: WhisperShape, options: WhisperOptions, net: WhisperNet
) -> ChunkedEncoder | WindowEncoder:
    kind = ChunkedEncoder if options.mode == "chunked" else WindowEncoder
    return kind(shape, options, _mel(shape), net)


def _mel(shape: WhisperShape) -> MelEncoder:
    return MelEncoder(replace(PRESETS["whisper"], bands=shape.bands, log="log10"))


def _options(
    shape: WhisperShape,
    mode: str = "chunked",
    chunk_ms: Any = None,
    left: Any = None,
    hop_ms: Any = None,
    ahead_ms: Any = None,
    emit: str = "hop",
    layer: Any = None,
    layers: Any = None,
) -> WhisperOptions:
    """The options checked, with their defaults. Raises UsageError."""
    chunked = choice("mode", mode, MODES) == "chunked"
    if emit not in ("hop", "window") or (chunked and emit == "window"):
        raise UsageError(f"whisper: emit is hop, or window in mode window; got {emit!r} in {mode}")
    others = {"hop_ms": hop_ms} if chunked else {"chunk_ms": chunk_ms, "left": left}
    if idle := [name for name, value in others.items() if value is not None]:
        raise UsageError(f"whisper: {', '.join(idle)} would have no effect in mode {mode}")
    name, given = ("chunk_ms", chunk_ms) if chunked else ("hop_ms", hop_ms)
    hop = _states(name, 1000 if given is None else given, 2)
    ahead = _states("ahead_ms", (1000 if chunked else 0) if ahead_ms is None else ahead_ms, 0)
    window = shape.positions
    chunks = 0
    if chunked:
        chunks = math.ceil(LEFT_STATES / hop) if left is None else integer("left", left, 0, MOST)
    if hop + ahead > window:
        raise UsageError(
            f"whisper: a hop of {seconds(hop)} with {seconds(ahead)} ahead of it is longer than "
            f"the {seconds(window)} that there are positions for"
        )
    if not chunked and (window % hop or ahead % hop):
        raise UsageError(
            f"whisper: hop_ms is a whole part of {window * MS} and ahead_ms a multiple of it; got "
            f"{hop * MS} and {ahead * MS}"
        )
    if emit == "window" and ahead:
        raise UsageError("whisper: whole windows see all that there is; leave ahead_ms out")
    return WhisperOptions(
        mode, hop, ahead, chunks, emit == "window", hidden_states(layer, layers, shape.layers)
    )


def _states(name: str, value: Any, least: int) -> int:
    """Milliseconds as states. Raises UsageError."""
    ms = integer(name, value, least * MS, MOST)
    if ms % MS:
        raise UsageError(f"whisper: {name} is {value!r}; wanted a multiple of {MS}, a state's time")
    return ms // MS


def _layout(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """Which one, and what stands before the encoder's names; None for another model."""
    for layout, positions in _POSITIONS.items():
        for prefix in _PREFIXES:
            if f"{prefix}{positions}" in checkpoint and f"{prefix}conv1.weight" in checkpoint:
                return layout, prefix
    return None


def _found(checkpoint: Checkpoint) -> tuple[str, str]:
    """The same. Raises CheckpointError for another model."""
    layout = _layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in "
            "Whisper (model.encoder.embed_positions.weight or encoder.positional_embedding)"
        )
    return layout


def _shape(checkpoint: Checkpoint, layout: str, prefix: str) -> WhisperShape:
    """From the config; without one from the tensors, with heads of 64 as all published sizes have.

    Raises CheckpointError.
    """
    try:
        if checkpoint.config:
            return WhisperShape.of(checkpoint.config)
        width, bands, _ = checkpoint.shape(f"{prefix}conv1.weight")
        blocks = f"{prefix}{_LAYERS[layout]}."
        numbers = {n[len(blocks) :].split(".")[0] for n in checkpoint.names if n.startswith(blocks)}
        hidden = checkpoint.shape(f"{blocks}0.{_LAYER[layout]['linear1']}.weight", 1)[0]
        positions = checkpoint.shape(f"{prefix}{_POSITIONS[layout]}", 1)[0]
        return WhisperShape(bands, width, width // HEAD_DIM, hidden, len(numbers), positions)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{checkpoint.name}: its sizes cannot be used: {error}") from error


def _origins(net: WhisperNet, shape: WhisperShape, layout: str, prefix: str) -> dict[str, Origin]:
    """Where each parameter comes from."""
    outer, inner = f"{prefix}{_LAYERS[layout]}", _LAYER[layout]
    origins: dict[str, Origin] = {
        "positions": f"{prefix}{_POSITIONS[layout]}",
        **{f"{c}.{p}": f"{prefix}{c}.{p}" for c in ("conv1", "conv2") for p in ("weight", "bias")},
        **{f"transformer.norm.{p}": f"{prefix}{_NORM[layout]}.{p}" for p in ("weight", "bias")},
    }
    for number in range(len(net.transformer.layers)):
        ours, there = f"transformer.layers.{number}", f"{outer}.{number}"
        for layer, theirs in inner.items():
            for kind in ("weight", "bias"):
                origins[f"{ours}.{layer}.{kind}"] = f"{there}.{theirs}.{kind}"
        projections = [f"{there}.{name}" for name in _PROJECTIONS[layout]]
        origins[f"{ours}.in_proj.weight"] = partial(_weights, projections)
        origins[f"{ours}.in_proj.bias"] = partial(_biases, projections)
    return origins


def _weights(projections: list[str], checkpoint: Checkpoint) -> Tensor:
    return torch.cat([checkpoint.get(f"{name}.weight") for name in projections])


def _biases(projections: list[str], checkpoint: Checkpoint) -> Tensor:
    """Of queries, keys and values; keys have none, as it would change no attention."""
    query, _, value = (f"{name}.bias" for name in projections)
    q, v = checkpoint.get(query), checkpoint.get(value)
    return torch.cat((q, torch.zeros_like(q), v))
