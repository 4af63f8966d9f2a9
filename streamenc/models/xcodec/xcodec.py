"""X-Codec: 16 kHz audio to codes that say what is said, 50 frames a second, and back (Ye et al.,
arXiv 2408.17175).

Audio, mono -> (a) the encoder of DAC, its largest stride first; (b) the mean of all hidden states
of HuBERT or WavLM, through some convolutions -> both side by side, projected -> 8 residual
codebooks of 1,024 entries in 1,024 dimensions. Decoding, their sum is projected and goes through
DAC's decoder: the semantic model has no part in it.

(a) and the decoder look ahead as far as published, and equal it. (b) was published for a whole
clip, which no stream has heard; three modes say what it hears instead:

`chunked`   Each frame computed once, attention by chunks: see `models.wav2vec2`.
`sliding`   Windows of the past and a little of the future, each computed anew.
`segment`   Clips of some seconds, each encoded as published, its edges included.

The tokenizer of Higgs audio v2 is the same network at 24 kHz and 25 frames a second, with codebooks
in 64 dimensions that are projected to and from.

Layouts: the transformers folders (hf-audio/xcodec-hubert-librispeech and its like), and X-Codec's
original .pth, whose sizes are those published.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.quantize import FactorisedVQ
from streamenc.layers.streamed import Chain, Residual
from streamenc.models.dac.blocks import DacNet, Layout, dac_origins
from streamenc.models.model import Model
from streamenc.models.wav2vec2.encoder import (
    BASE,
    RATE,
    SlidingEncoder,
    SpeechEncoder,
    SpeechOptions,
    SpeechShape,
)
from streamenc.models.wav2vec2.layouts import family_of, find_layout, origins_of, shape_of
from streamenc.models.wav2vec2.wav2vec2 import frames_of, options_of
from streamenc.models.xcodec.branches import Beside, Resampled
from streamenc.models.xcodec.coder import (
    Clip,
    Quantizer,
    SegmentEncoder,
    XcodecDecoder,
    XcodecEncoder,
    XcodecShape,
)
from streamenc.options import choice
from streamenc.spec import StreamSpec

MODES = ("chunked", "sliding", "segment")
MAX_SIZE, MAX_LEVELS = 1 << 16, 64
SEGMENT_MS = 10_000
# As far as the acoustic branch hears ahead, the semantic one may for nothing.
SLIDING = {"window_ms": 4000, "hop_ms": 200, "ahead_ms": 200}

_ACOUSTIC: dict[str, Any] = {
    "encoder_hidden_size": 64,
    "downsampling_ratios": [8, 5, 4, 2],
    "decoder_hidden_size": 1024,
    "upsampling_ratios": [8, 5, 4, 2],
    "hidden_size": 256,
}
HIGGS = "higgs_audio_v2_tokenizer"
_DEFAULTS: dict[str, Any] = {
    "sample_rate": RATE,
    "target_bandwidths": [0.5, 1, 1.5, 2, 4],
    "kernel_size": 3,
    "unit_kernel_size": 3,
    "block_dilations": [1, 1],
    "channel_ratios": [1, 1],
    "strides": [1, 1],
    "codebook_size": 1024,
}
# What the Higgs tokenizer has otherwise, as it is published.
_HIGGS: dict[str, Any] = {
    "sample_rate": 24_000,
    "semantic_sample_rate": RATE,
    "downsample_factor": 320,
    "target_bandwidths": [0.5, 1, 1.5, 2],
    "codebook_dim": 64,
}
_HIGGS_RATIOS = [8, 5, 4, 2, 3]
# What stands before the names of the parts, in each layout.
_PARTS: dict[Layout, dict[str, str]] = {
    "transformers": {
        "encoder": "acoustic_encoder",
        "decoder": "acoustic_decoder",
        "prior": "fc",
        "post": "fc2",
        "convolution": "conv",
        "level": "quantizer.quantizers.{}",
        "books": "quantizer.quantizers.{}.codebook.embed",
    },
    "original": {
        "encoder": "encoder",
        "decoder": "decoder_2",
        "prior": "fc_prior",
        "post": "fc_post2",
        "convolution": "conv.conv",
        "level": "quantizer.vq.layers.{}",
        "books": "quantizer.vq.layers.{}._codebook.embed",
    },
}


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts."""
    return _layout(checkpoint) is not None


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "hubert" or "wavlm", the semantic model of
    X-Codec, or "higgs"."""
    shape = _shape_of({}, "the published model", higgs=variant == "higgs")
    speech = replace(BASE, normalize=False, distances=(320, 800) if variant == "wavlm" else None)
    with torch.device("meta"):
        return _encoder(shape, speech, "hubert", {}, shape.quantizer()).spec


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    mode: str = "chunked",
    chunk_ms: Any = None,
    left: Any = None,
    ahead: Any = None,
    positions: Any = None,
    norm_seconds: Any = None,
    window_ms: Any = None,
    hop_ms: Any = None,
    ahead_ms: Any = None,
    segment_ms: Any = None,
) -> tuple[Model | None, Model | None]:
    """The encoder and the decoder, sharing their codebooks. The options are the encoder's.

    mode    What the semantic model hears: "chunked", "sliding" or "segment"; see the module.

    For "chunked":

    chunk_ms  The longest time that a frame's own chunk makes it wait; a multiple of 20.
    left    Chunks before its own that a frame sees; None for 3.2 s of them.
    ahead   Chunks after its own, each in one layer more: the first layers see them.
    positions  "cut" at the chunk's end, or "wait" for the 63 frames that they see ahead: 1.3 s.
    norm_seconds  How long the statistics over time of HuBERT's first layer remember; 0 never
            forgets.

    For "sliding":

    window_ms, hop_ms  The windows' length and distance, multiples of 20; 4000 and 200.
    ahead_ms  How far before the window's end its newest frame lies that comes out; 200.

    For "segment":

    segment_ms  How long the clips are; 10000.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    layout = _layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: its {len(checkpoint.names)} tensors are not named as in X-Codec "
            "(quantizer.quantizers.0.codebook.embed, and fc.weight or fc2.weight)"
        )
    given = {
        "mode": mode,
        "chunk_ms": chunk_ms,
        "left": left,
        "ahead": ahead,
        "positions": positions,
        "norm_seconds": norm_seconds,
        "window_ms": window_ms,
        "hop_ms": hop_ms,
        "ahead_ms": ahead_ms,
        "segment_ms": segment_ms,
    }
    options = {key: value for key, value in given.items() if value is not None}
    names = _PARTS[layout]
    higgs = f"{names['level'].format(0)}.project_in.weight" in checkpoint
    if higgs and layout == "original":
        raise CheckpointError(
            f"{checkpoint.name} is the Higgs tokenizer in its original layout; wanted the "
            "transformers folder of it"
        )
    shape = _shape_of(checkpoint.config, checkpoint.name, higgs)
    with torch.device("meta"):
        quantizer = shape.quantizer()
    fill(quantizer, _quantizer_origins(names, shape), checkpoint)
    encoder: XcodecEncoder | None = None
    decoder: XcodecDecoder | None = None
    if part in ("both", "encoder"):
        inner, speech, family = _semantic(checkpoint)
        hop = shape.net.hop * RATE // (shape.rate * shape.every)
        if speech.width != shape.semantic_width or speech.hop != hop:
            raise CheckpointError(
                f"{checkpoint.name}: its semantic model has {speech.width} channels, a frame every "
                f"{speech.hop} samples; wanted {shape.semantic_width}, and {hop}"
            )
        with torch.device("meta"):
            encoder = _encoder(shape, speech, family, options, quantizer)
        _fill_encoder(encoder, layout, inner, checkpoint)
    if part in ("both", "decoder"):
        with torch.device("meta"):
            decoder = XcodecDecoder(shape, quantizer)
        *joined, projection, network = decoder.chain.layers
        assert isinstance(network, Chain)
        for layer in joined:
            assert isinstance(quantizer, FactorisedVQ)
            fill(layer, {"weight": _known(quantizer.joined_weight()[:, :, None])}, checkpoint)
        fill(projection, _linear(names["post"]), checkpoint)
        fill(network, dac_origins(network, names["decoder"], layout), checkpoint)
    _check_left(checkpoint, layout, encoder is not None, decoder is not None)
    return encoder, decoder


def _encoder(
    shape: XcodecShape,
    speech: SpeechShape,
    family: str,
    options: dict[str, Any],
    quantizer: Quantizer,
) -> XcodecEncoder:
    """Raises UsageError for options that do not fit."""
    options = dict(options)
    mode = choice("mode", options.pop("mode", MODES[0]), MODES)
    if mode == "segment":
        frames = frames_of(speech, "segment_ms", options.pop("segment_ms", SEGMENT_MS))
        if frames % shape.every:
            least = 1000 * shape.net.hop / shape.rate
            raise UsageError(f"segment_ms must be a multiple of {least:g}, the length of a frame")
        if options:
            raise UsageError(f"{', '.join(sorted(options))}: of other modes than mode=segment")
        everything = tuple(range(speech.layers + 1))
        heard = SpeechOptions(
            "sliding", everything, mean=True, wait=True, window=frames, hop=frames
        )
        return SegmentEncoder(shape, Clip(family, speech, heard), quantizer)
    if "segment_ms" in options:
        raise UsageError(f"segment_ms is of mode=segment, not of mode={mode}")
    if mode == "sliding":
        options = {**SLIDING, **options}
    heard = options_of(speech, {**options, "mode": mode, "layers": "all", "mean": True})
    kind = SlidingEncoder if mode == "sliding" else SpeechEncoder
    try:
        return XcodecEncoder(shape, kind(family, speech, heard), quantizer)
    except ValueError as error:  # windows that give no whole frames of a codec with longer ones
        frame_ms = 1000 * shape.net.hop / shape.rate
        raise UsageError(
            f"lengths must be multiples of {frame_ms:g} ms, the length of a frame: {error}"
        ) from error


def _shape_of(config: dict[str, Any], name: str, higgs: bool = False) -> XcodecShape:
    """Of a config.json; what it leaves out is as published. Raises CheckpointError."""
    stated = config.get("model_type", HIGGS if higgs else "xcodec")
    if (stated == HIGGS) != higgs:
        raise CheckpointError(
            f"{name} is {stated!r} by its config, but its codebooks are "
            f"{'' if higgs else 'not '}projected, as those of {HIGGS} are; which is it?"
        )
    try:
        return _checked({**_DEFAULTS, **(_HIGGS if higgs else {}), **config}, higgs)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: its config cannot be used: {error}") from error


def _checked(config: dict[str, Any], higgs: bool) -> XcodecShape:
    """Raises TypeError, ValueError for a config that makes no sense, or another network."""
    ratios = dict.fromkeys(("downsampling_ratios", "upsampling_ratios"), _HIGGS_RATIOS)
    acoustic = {**_ACOUSTIC, **(ratios if higgs else {}), **_table(config, "acoustic_model_config")}
    semantic = _table(config, "semantic_model_config")
    net = DacNet(
        latent=acoustic["hidden_size"],
        encoder_width=acoustic["encoder_hidden_size"],
        encoder_strides=tuple(acoustic["downsampling_ratios"]),
        decoder_width=acoustic["decoder_hidden_size"],
        decoder_strides=tuple(acoustic["upsampling_ratios"]),
        output_padding=True,
        tanh=False,
    )
    if acoustic.get("model_type", "dac") != "dac":
        raise ValueError(
            f"acoustic_model_config is {acoustic['model_type']!r}; only 'dac' is known"
        )
    blocks = config["strides"]
    for key in ("strides", "channel_ratios"):
        if not isinstance(config[key], list) or not 1 <= len(config[key]) <= 16:
            raise ValueError(f"{key} is {config[key]!r:.80}; wanted a list of 1 to 16 numbers")
        if any(value != 1 for value in config[key]) or len(config[key]) != len(blocks):
            raise ValueError(f"{key} is {config[key]!r:.80}; only ones are known, as many of both")
    dilations = config["block_dilations"]
    if (
        not isinstance(dilations, list)
        or not 1 <= len(dilations) <= 16
        or not all(type(n) is int and 1 <= n <= 64 for n in dilations)
    ):
        raise ValueError(f"block_dilations is {dilations!r:.80}; wanted 1 to 16 numbers up to 64")
    sizes = {"semantic_width": (semantic.get("hidden_size", BASE.width), "hidden_size", MAX_SIZE)}
    sizes |= {key: (config[key], key, 63) for key in ("kernel_size", "unit_kernel_size")}
    sizes |= {"codebook_size": (config["codebook_size"], "codebook_size", MAX_SIZE)}
    for value, key, most in sizes.values():
        odd = key.endswith("kernel_size")
        if type(value) is not int or not 1 <= value <= most or (odd and not value % 2):
            raise ValueError(
                f"{key} is {value!r}; wanted {'an odd number' if odd else 'a number'} from 1 to "
                f"{most}"
            )
    width = net.latent + sizes["semantic_width"][0]
    fixed = {"sample_rate": RATE, "codebook_dim": width}
    if higgs:
        fixed = {"semantic_sample_rate": RATE, "downsample_factor": BASE.hop}
    for key, wanted in fixed.items():
        if config.get(key, wanted) not in (wanted, None):
            raise ValueError(f"{key} is {config[key]!r}; only {wanted} is known")
    rate, dim, every = RATE, 0, 1
    if higgs:
        rate, dim = config["sample_rate"], config["codebook_dim"]
        if type(rate) is not int or not 1000 <= rate <= 192_000 or rate % 1000:
            raise ValueError(f"sample_rate is {rate!r}; wanted whole kHz from 1000 to 192000")
        if type(dim) is not int or not 1 <= dim <= width:
            raise ValueError(f"codebook_dim is {dim!r}; wanted a number from 1 to {width}")
        every, left = divmod(net.hop * RATE, rate * BASE.hop)
        if left or not every:
            raise ValueError(
                f"a frame of {net.hop} samples at {rate} Hz is no whole number of the semantic "
                f"model's, {BASE.hop} samples at {RATE} Hz"
            )
    return XcodecShape(
        net,
        sizes["semantic_width"][0],
        config["kernel_size"],
        config["unit_kernel_size"],
        tuple(dilations),
        len(blocks),
        _levels(config, net, rate),
        config["codebook_size"],
        HIGGS if higgs else "xcodec",
        dim,
        rate,
        every,
    )


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key, {})
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {value!r:.80}; wanted a table")
    return value


def _levels(config: dict[str, Any], net: DacNet, rate: int) -> int:
    """How many codebooks the largest of the bandwidths, in kbit/s, has room for."""
    stated = config["target_bandwidths"]
    widest = stated[-1] if isinstance(stated, list) and stated else 0
    if type(widest) not in (int, float) or not 0 < widest <= 1e6:
        raise ValueError(f"target_bandwidths is {stated!r:.80}; wanted kbit/s, the most last")
    bits = math.ceil(math.log2(config["codebook_size"]))
    levels = int(1000 * widest // (max(1, bits) * math.ceil(rate / net.hop)))
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(
            f"target_bandwidths end with {widest} kbit/s, {levels} codebooks of "
            f"{config['codebook_size']} entries; wanted 1 to {MAX_LEVELS}"
        )
    return levels


def _semantic(checkpoint: Checkpoint) -> tuple[Checkpoint, SpeechShape, str]:
    """The semantic model's own checkpoint, its shape and its family. Raises CheckpointError."""
    inner = copy.copy(checkpoint)
    inner.config = checkpoint.config.get("semantic_model_config", {})
    # X-Codec gives it the waveform as it is, whatever its own preprocessing says.
    inner.preprocessor = {"do_normalize": False}
    layout = find_layout(inner)
    if layout is None or layout[0] != "semantic_model.":
        raise CheckpointError(
            f"{checkpoint.name} has no semantic model (semantic_model.feature_extractor...); the "
            "decoder alone needs none: part='decoder'"
        )
    shape = replace(shape_of(inner, layout), normalize=False)
    return inner, shape, family_of(shape, inner.config.get("model_type", "hubert"))


def _fill_encoder(
    encoder: XcodecEncoder, layout: Layout, inner: Checkpoint, checkpoint: Checkpoint
) -> None:
    names, found = _PARTS[layout], find_layout(inner)
    both, projection = encoder.chain.layers
    assert isinstance(both, Beside) and found is not None
    acoustic, heard = both.branches
    assert isinstance(acoustic, Chain) and isinstance(heard, Chain)
    *_, convolutions = heard.layers
    semantic = next(layer for layer in heard.layers if isinstance(layer, SpeechEncoder))
    for layer in heard.layers:
        if isinstance(layer, Resampled):
            fill(layer, {"weight": _known(layer.kernel())}, checkpoint)
    assert isinstance(convolutions, Chain)
    fill(acoustic, dac_origins(acoustic, names["encoder"], layout), checkpoint)
    fill(semantic, origins_of(semantic, found), inner)
    fill(convolutions, _convolutions(convolutions, names["convolution"]), checkpoint)
    fill(projection, _linear(names["prior"]), checkpoint)


def _convolutions(chain: Chain, convolution: str) -> dict[str, Origin]:
    """Of the convolutions behind the semantic model.

    convolution  What a convolution of three positions is called in the layout.
    """
    origins: dict[str, Origin] = {}
    block = unit = 0
    for index, layer in enumerate(chain.layers):
        there = f"encoder_semantic.conv_blocks.{block}"
        if isinstance(layer, Residual):
            place = f"{there}.res_units.{unit}"
            inner = convolution.removeprefix("conv")
            origins[f"layers.{index}.block.layers.1.weight"] = f"{place}.conv1{inner}.weight"
            origins[f"layers.{index}.block.layers.3.weight"] = f"{place}.conv2.weight"
            unit += 1
        elif not index:
            origins["layers.0.weight"] = f"encoder_semantic.{convolution}.weight"
        else:
            for kind in ("weight", "bias"):
                origins[f"layers.{index}.{kind}"] = f"{there}.{convolution}.{kind}"
            block, unit = block + 1, 0
    return origins


def _linear(name: str) -> dict[str, Origin]:
    """A linear layer as a convolution over one position."""
    return {
        "weight": lambda checkpoint: checkpoint.get(f"{name}.weight")[:, :, None],
        "bias": f"{name}.bias",
    }


def _known(value: Tensor) -> Origin:
    """Of what stands in no checkpoint."""
    return lambda _: value


def _quantizer_origins(names: dict[str, str], shape: XcodecShape) -> dict[str, Origin]:
    size = (shape.entries, shape.dim or shape.width)
    levels = range(shape.levels)

    def stacked(places: list[str], size: tuple[int, ...] | None = None) -> Origin:
        return lambda checkpoint: torch.stack([checkpoint.get(place, size) for place in places])

    origins = {"codebooks": stacked([names["books"].format(level) for level in levels], size)}
    if shape.dim:
        for ours, theirs in (("into", "project_in"), ("out_of", "project_out")):
            there = [f"{names['level'].format(level)}.{theirs}" for level in levels]
            origins[ours] = stacked([f"{place}.weight" for place in there])
            origins[f"{ours}_bias"] = stacked([f"{place}.bias" for place in there])
    return origins


def _layout(checkpoint: Checkpoint) -> Layout | None:
    for layout, names in _PARTS.items():
        ends = (f"{names['prior']}.weight", f"{names['post']}.weight")
        if names["books"].format(0) in checkpoint and any(end in checkpoint for end in ends):
            return layout
    return None


def _check_left(checkpoint: Checkpoint, layout: Layout, encoder: bool, decoder: bool) -> None:
    """Raises CheckpointError where tensors of the parts that were read belong to no layer."""
    names = _PARTS[layout]
    parts = [names["books"].split("{")[0]]
    parts += [f"{names['encoder']}.", "encoder_semantic.", "semantic_model."] if encoder else []
    parts += [f"{names['decoder']}."] if decoder else []
    # What training kept: a mask, and of each codebook how often its entries were used.
    idle = ("masked_spec_embed", ".embed_avg", ".cluster_size", ".inited")
    checkpoint.check_used(*parts, besides=idle)
