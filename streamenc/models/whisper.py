"""Whisper: the encoder of the speech recogniser, 50 states a second (OpenAI, arXiv 2212.04356).

Audio, 16 kHz mono -> log-mel (100 Hz) -> two convolutions (50 Hz) -> absolute positions ->
transformer. The published encoder sees 30 s at once, padded with zeros, in both directions, so no
stream can equal it offline. There are two modes, each equal to its own definition run offline:

"window"   At each hop the published encoder over the last 30 s, padded as published.
"chunked"  Attention in chunks: a state sees its own chunk, the `left_seconds` before it, whose keys
           and values are kept, and the `lookahead_seconds` behind it. Each second costs the same.

Layouts: the transformers folder (openai/whisper-tiny to -large-v3, whole or only its encoder), and
OpenAI's own `.pt` files. The text decoder is neither read nor run here; examples/live_captions.py
shows transformers' decoder on streamed states.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from streamenc.checkpoints import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.base import Model
from streamenc.models.mel import PRESETS, MelEncoder
from streamenc.models.whispermodes import (
    STATES_PER_SECOND,
    ChunkedEncoder,
    Options,
    Shape,
    WhisperNet,
    WindowEncoder,
    seconds,
    spec_of,
)
from streamenc.spec import StreamSpec

MODES = ("chunked", "window")
LEFT_STATES = 500  # of 10 s: from 4 s to 30 s the word errors are about the same
HEAD_DIM = 64  # of every published size
# Of the published sizes: width, layers, log-mel bands.
PUBLISHED: dict[str, tuple[int, int, int]] = {
    "tiny": (384, 4, 80),
    "base": (512, 6, 80),
    "small": (768, 12, 80),
    "medium": (1024, 24, 80),
    "large": (1280, 32, 80),
    "large-v3": (1280, 32, 128),
}
# Where the encoder's tensors are, by the end of the first one's name.
_PREFIXES = ("model.encoder.", "encoder.", "")
_POSITIONS = {"transformers": "embed_positions.weight", "original": "positional_embedding"}
_OUTER = {
    "transformers": {"norm": "layer_norm", "layers": "layers"},
    "original": {"norm": "ln_post", "layers": "blocks"},
}
_LAYER = {
    "transformers": {
        "norm1": "self_attn_layer_norm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        "norm2": "final_layer_norm",
        "linear1": "fc1",
        "linear2": "fc2",
    },
    "original": {
        "norm1": "attn_ln",
        "query": "attn.query",
        "key": "attn.key",
        "value": "attn.value",
        "out": "attn.out",
        "norm2": "mlp_ln",
        "linear1": "mlp.0",
        "linear2": "mlp.2",
    },
}


def published_spec(name: str) -> StreamSpec:
    """What the encoder of a published size promises with the default options."""
    shape = _published(name)
    return spec_of(shape, _options(shape))


def _published(name: str) -> Shape:
    sizes = [size for size in PUBLISHED if size in name]
    width, layers, bands = PUBLISHED[max(sizes, key=len)]
    return Shape(bands, width, width // HEAD_DIM, 4 * width, layers)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of Whisper's layouts."""
    return _layout(checkpoint) is not None


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    mode: str = "chunked",
    hop_seconds: float = 1.0,
    lookahead_seconds: float | None = None,
    left_seconds: float | None = None,
    emit: str = "hop",
    layer: int | None = None,
) -> tuple[Model, None]:
    """The encoder; the text decoder is not read.

    mode               "chunked" or "window"; see the module's text.
    hop_seconds        From step to step, in steps of 0.02; in "window" a part of 30 s.
    lookahead_seconds  How much sound behind the states of a hop they see at least: in "chunked" 1 s
                       by default, in "window" a multiple of the hop, by default none.
    left_seconds       How much before its chunk a state sees, only "chunked"; 10 s by default.
    emit               "hop": the states of each hop. "window", in that mode: each step gives all
                       1500 states of its window, as a decoder wants them.
    layer              Whose output is given: 0 is what the first layer takes. By default the last
                       one's behind the final norm.
    Raises UsageError for options that do not go together, CheckpointError for weights that do not
    fit.
    """
    if part == "decoder":
        raise UsageError(
            f"{name}: only Whisper's encoder is here, and its decoder writes text; load the encoder"
        )
    layout = _layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in "
            "Whisper (model.encoder.embed_positions.weight or encoder.positional_embedding)"
        )
    shape = _shape(checkpoint, *layout)
    options = _options(shape, mode, hop_seconds, lookahead_seconds, left_seconds, emit, layer)
    mel = MelEncoder(replace(PRESETS["whisper"], bands=shape.bands, log="log10"))
    with torch.device("meta"):
        net = WhisperNet(shape, options)
    fill(net, _origins(net, *layout), checkpoint)
    encoder = ChunkedEncoder if options.mode == "chunked" else WindowEncoder
    return encoder(shape, options, mel, net), None


def _options(
    shape: Shape,
    mode: str = "chunked",
    hop_seconds: Any = 1.0,
    lookahead_seconds: Any = None,
    left_seconds: Any = None,
    emit: str = "hop",
    layer: Any = None,
) -> Options:
    """The options checked, with their defaults. Raises UsageError."""
    chunked = mode == "chunked"
    if mode not in MODES:
        raise UsageError(f"whisper: mode is one of {', '.join(MODES)}; got {mode!r}")
    if emit not in ("hop", "window") or (chunked and emit == "window"):
        raise UsageError(f"whisper: emit is hop or, in mode window, window; got {emit!r} in {mode}")
    if not chunked and left_seconds is not None:
        raise UsageError("whisper: left_seconds is for mode chunked; a window holds what it holds")
    hop = _count("hop_seconds", hop_seconds, 2)
    if lookahead_seconds is None:
        lookahead_seconds = 1.0 if chunked else 0.0
    lookahead = _count("lookahead_seconds", lookahead_seconds, 0)
    window = shape.positions
    left = min(LEFT_STATES, window) if chunked else 0
    if left_seconds is not None:
        left = _count("left_seconds", left_seconds, 0)
    if hop + lookahead > window or left > window:
        raise UsageError(
            f"whisper: a hop of {seconds(hop)} with {seconds(lookahead)} of look-ahead, and "
            f"{seconds(left)} before it; there are positions for {seconds(window)}"
        )
    if not chunked:
        if window % hop or lookahead % hop:
            raise UsageError(
                f"whisper: in mode window hop_seconds is a part of {seconds(window)}, and "
                f"lookahead_seconds a multiple of it; got {seconds(hop)} and {seconds(lookahead)}"
            )
        if emit == "window" and lookahead:
            raise UsageError("whisper: whole windows have no look-ahead; leave lookahead_seconds")
    if layer is not None:
        layer = _whole(layer)
        if not 0 <= layer <= shape.layers:
            raise UsageError(f"whisper: layer is 0 to {shape.layers}; got {layer}")
    return Options(mode, hop, lookahead, left, emit == "window", layer)


def _count(name: str, value: Any, least: int) -> int:
    """Seconds as states of 20 ms. Raises UsageError."""
    try:
        states = float(value) * STATES_PER_SECOND
    except (TypeError, ValueError):
        states = math.nan
    if isinstance(value, bool) or not math.isfinite(states) or abs(states - round(states)) > 1e-6:
        raise UsageError(f"whisper: {name} is {value!r}; wanted seconds, in steps of 0.02")
    if round(states) < least:
        raise UsageError(
            f"whisper: {name} is {value!r}; wanted {least / STATES_PER_SECOND:g} or more"
        )
    return round(states)


def _layout(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """Which one, and what stands before the encoder's names; None for another model."""
    for layout, positions in _POSITIONS.items():
        for prefix in _PREFIXES:
            if f"{prefix}{positions}" in checkpoint and f"{prefix}conv1.weight" in checkpoint:
                return layout, prefix
    return None


def _shape(checkpoint: Checkpoint, layout: str, prefix: str) -> Shape:
    """From the config; without one from the tensors, with heads of 64 as all published sizes have.

    Raises CheckpointError.
    """
    try:
        if checkpoint.config:
            return Shape.of(checkpoint.config)
        width, bands, _ = checkpoint.shape(f"{prefix}conv1.weight")
        blocks = f"{prefix}{_OUTER[layout]['layers']}."
        numbers = {n[len(blocks) :].split(".")[0] for n in checkpoint.names if n.startswith(blocks)}
        hidden = checkpoint.shape(f"{blocks}0.{_LAYER[layout]['linear1']}.weight")[0]
        positions = checkpoint.shape(f"{prefix}{_POSITIONS[layout]}")[0]
        return Shape(bands, width, width // HEAD_DIM, hidden, len(numbers), positions)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{checkpoint.name}: its sizes cannot be used: {error}") from error


def _origins(net: WhisperNet, layout: str, prefix: str) -> dict[str, Origin]:
    """Where each parameter comes from."""
    outer, layers = _OUTER[layout], _LAYER[layout]
    origins: dict[str, Origin] = {}
    for ours in net.state_dict():
        first, _, rest = ours.partition(".")
        if first == "positions":
            there = _POSITIONS[layout]
        elif first == "transformer":
            _, number, layer, kind = rest.split(".")
            there = f"{outer['layers']}.{number}.{layers[layer]}.{kind}"
        else:
            there = f"{outer.get(first, first)}.{rest}"
        origins[ours] = f"{prefix}{there}"
    return origins


def _whole(value: Any) -> int:
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"whisper: layer is {value!r}; wanted a whole number") from None
    return int(value)
