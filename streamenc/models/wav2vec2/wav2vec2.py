"""wav2vec 2.0, HuBERT and WavLM: features of speech, 50 a second.

Audio, 16 kHz mono -> convolutions without padding (400 samples seen, hop 320) -> projection -> a
convolution over 128 frames that stands for positions -> transformer. The first two families are one
network, trained differently (arXiv 2006.11477, 2106.07447); WavLM's attention has a gated bias by
distance besides (arXiv 2110.13900).

The published models take a whole clip: the transformer attends to all of it, the positions see 1.3
s ahead, the base models normalise over time, and some z-normalise the waveform. So no stream can
equal them, and two modes say which windows they run on instead:

`chunked`   Every frame is computed once. Attention by chunks, see `layers.chunked`; positions are
            cut at the chunk or wait; normalisation over time by running or frozen statistics, see
            `layers.running`. The convolutions with LayerNorm, and all else, are exact.
`sliding`   Windows of 2 s, say, each computed anew by the published model, of which the newest
            frames come out: what is commonly done, at 20 times the cost of the clip.

Layouts: transformers folders and files (with or without a head on top), and fairseq's names, whose
shape is read from the tensors.
"""

from __future__ import annotations

import math
import os
import wave
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, fill
from streamenc.checkpoints.weightfiles import check_file
from streamenc.errors import CheckpointError, UsageError
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.signal import tensor_of
from streamenc.models.wav2vec2.encoder import (
    BASE,
    LARGE,
    NORM_SECONDS,
    RATE,
    SlidingEncoder,
    SpeechEncoder,
    SpeechOptions,
    SpeechShape,
)
from streamenc.models.wav2vec2.layouts import family_of, find_layout, origins_of, shape_of
from streamenc.options import choice, flag, integer, number
from streamenc.spec import StreamSpec

# Two hundred days, so that samples are counted in 64 bits.
MAX_NORM_SECONDS = 2e7

# Chunks of 16 frames: short for a listener, long enough that reading the weights, which costs the
# same for any chunk, is no more than half of a step.
CHUNK_MS = 320
# Windows of 2 s are common; keys and values of this much are cheap to attend to, and to hold.
CONTEXT_MS = 3200
MAX_CALIBRATION_SECONDS = 600
MAX_UNITS = 1 << 16
MAX_UNITS_BYTES = 1 << 28


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "wav2vec2-base", "wavlm-large", ..."""
    family, _, size = variant.partition("-")
    shape = {"base": BASE, "large": LARGE}[size]
    if family == "wavlm":  # its large one has no biases in the stem, its base ones take sound as is
        shape = replace(shape, conv_bias=False, normalize=size == "large", distances=(320, 800))
    with torch.device("meta"):
        return SpeechEncoder(family, shape, options_of(shape, {})).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of one of the layouts, and of no codec around them."""
    layout = find_layout(checkpoint)
    return layout is not None and layout[0] != "semantic_model."


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    mode: str = "chunked",
    layer: Any = None,
    layers: Any = None,
    mean: Any = False,
    chunk_ms: Any = None,
    left: Any = None,
    ahead: Any = None,
    positions: Any = None,
    norm: Any = None,
    norm_seconds: Any = None,
    calibration: Any = None,
    normalize: Any = None,
    window_ms: Any = None,
    hop_ms: Any = None,
    ahead_ms: Any = None,
    units: Any = None,
) -> tuple[SpeechEncoder, None]:
    """The encoder; there is no decoder. All options also come as strings.

    mode    "chunked" or "sliding"; see the module.
    layer, layers  The hidden states that come out, in this order: 9, "6,9", [0, -1] or "all". 0 is
            the transformer's input, 12 or -1 the last layer of a base model, which is the default;
            where a norm ends the network, the last one comes with it.
    mean    True gives their mean, False lays them one below the other.
    normalize  Whether the waveform is z-normalised; None for what preprocessor_config.json or
            processor_config.json says, without them as transformers does (for fairseq's files: the
            models with LayerNorm).
    units   A file of k-means centroids, .npy or .safetensors, (units, channels), or an array: what
            comes out is the index of the nearest one.

    For "chunked":

    chunk_ms  The longest time that a frame's own chunk makes it wait; a multiple of 20.
    left    Chunks before its own that a frame sees; None for 3.2 s of them.
    ahead   Chunks after its own, each in one layer more: the first layers see them.
    positions  "cut" at the chunk's end, or "wait" for the 63 frames that they see ahead: 1.3 s.
    norm    "running" or "frozen" statistics over time; frozen ones need `calibration`.
    norm_seconds  How long running ones remember; 0 never forgets.
    calibration  A WAV file of 16 kHz, or an array of samples: how the speech to come sounds.

    For "sliding":

    window_ms, hop_ms  The windows' length and distance, multiples of 20; 2000 and 100.
    ahead_ms  How far before the window's end its newest frame lies that comes out; 0.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes features; it has no decoder")
    layout = find_layout(checkpoint)
    if layout is None:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in "
            "wav2vec 2.0, HuBERT or WavLM (feature_extractor.conv_layers.0.conv.weight)"
        )
    shape = shape_of(checkpoint, layout)
    if normalize is not None:
        shape = replace(shape, normalize=flag("normalize", normalize))
    given = {
        "mode": mode,
        "layer": layer,
        "layers": layers,
        "mean": mean,
        "chunk_ms": chunk_ms,
        "left": left,
        "ahead": ahead,
        "positions": positions,
        "norm": norm,
        "norm_seconds": norm_seconds,
        "calibration": calibration,
        "window_ms": window_ms,
        "hop_ms": hop_ms,
        "ahead_ms": ahead_ms,
    }
    options = options_of(shape, {key: value for key, value in given.items() if value is not None})
    stated = checkpoint.config.get("model_type")
    family = family_of(shape, stated or name.partition(":")[0])
    kind = SlidingEncoder if options.mode == "sliding" else SpeechEncoder
    channels = shape.width * (1 if options.mean else len(options.outputs))
    centroids = None if units is None else _centroids(units, channels)
    with torch.device("meta"):
        encoder = kind(
            family,
            shape,
            options,
            0 if centroids is None else len(centroids),
        )
    origins = origins_of(encoder, layout)
    if centroids is not None:
        origins["units.codebooks"] = lambda checkpoint: centroids[None]
    fill(encoder, origins, checkpoint)
    if options.frozen:
        encoder.calibrate(_clip(calibration))
    return encoder, None


def options_of(shape: SpeechShape, given: dict[str, Any]) -> SpeechOptions:
    """What `load` was given, checked; also for what is built on this network.

    Raises UsageError for what does not fit.
    """
    by_mode = {
        "chunked": {
            "chunk_ms",
            "left",
            "ahead",
            "positions",
            "norm",
            "norm_seconds",
            "calibration",
        },
        "sliding": {"window_ms", "hop_ms", "ahead_ms"},
    }
    mode = choice("mode", given.get("mode", "chunked"), by_mode)
    for other in by_mode.keys() - {mode}:
        if idle := given.keys() & by_mode[other]:
            raise UsageError(f"{', '.join(sorted(idle))} is of mode={other}, not of mode={mode}")
    outputs = hidden_states(given.get("layer"), given.get("layers"), shape.layers)
    mean = flag("mean", given.get("mean", False))
    if mode == "sliding":
        window = frames_of(shape, "window_ms", given.get("window_ms", 2000))
        hop = frames_of(shape, "hop_ms", given.get("hop_ms", 100))
        ahead = frames_of(shape, "ahead_ms", given.get("ahead_ms", 0), least=0)
        if hop + ahead > window:
            raise UsageError("a window is at least as long as hop_ms and ahead_ms together")
        return SpeechOptions(
            "sliding", outputs, mean, wait=True, window=window, hop=hop, ahead_frames=ahead
        )
    chunk = frames_of(shape, "chunk_ms", given.get("chunk_ms", CHUNK_MS))
    in_context = math.ceil(Fraction(CONTEXT_MS * RATE, 1000 * shape.hop * chunk))
    ahead = integer("ahead", given.get("ahead", 0), 0, max(outputs))
    kind = choice("norm", given.get("norm", "running"), ("running", "frozen"))
    frozen = kind == "frozen"
    if frozen != ("calibration" in given):
        raise UsageError("norm=frozen and calibration=CLIP belong together: give both, or neither")
    if frozen and "norm_seconds" in given:
        raise UsageError("norm_seconds is of norm=running; frozen statistics do not forget")
    seconds = given.get("norm_seconds", NORM_SECONDS)
    return SpeechOptions(
        "chunked",
        outputs,
        mean,
        chunk,
        integer("left", given.get("left", in_context), 0, 10_000),
        ahead,
        choice("positions", given.get("positions", "cut"), ("cut", "wait")) == "wait",
        frozen,
        0.0 if frozen else number("norm_seconds", seconds, 0, MAX_NORM_SECONDS),
    )


def frames_of(shape: SpeechShape, what: str, value: Any, least: int = 1) -> int:
    """An option's length in frames. Raises UsageError where it is no whole number of them."""
    frame_ms = Fraction(1000 * shape.hop, RATE)
    frames = Fraction(integer(what, value, 0, 60_000)) / frame_ms
    if frames.denominator != 1 or frames < least:
        raise UsageError(
            f"{what} is {value}; wanted a multiple of {float(frame_ms):g} ms, the length of a "
            f"frame{', above 0' if least else ''}"
        )
    return int(frames)


def _centroids(units: Any, channels: int) -> Tensor:
    """(units, channels), float32. Raises UsageError, CheckpointError for a file."""
    where = "units"
    if isinstance(units, str | os.PathLike):
        where = os.fspath(units)
        units = _read_array(Path(units))
    try:
        centroids = tensor_of(units)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: centroids are an array of numbers; {error}") from error
    if not centroids.is_floating_point() or centroids.ndim != 2:
        raise CheckpointError(
            f"{where}: centroids are floats of shape (units, {channels}); got "
            f"{centroids.dtype} of shape {tuple(centroids.shape)}"
        )
    if centroids.shape[1] != channels or not 1 <= len(centroids) <= MAX_UNITS:
        raise CheckpointError(
            f"{where}: {len(centroids)} centroids of {centroids.shape[1]} channels; the features "
            f"have {channels}: were they made of another layer, or of a model of another size?"
        )
    if not torch.isfinite(centroids).all():
        raise CheckpointError(f"{where}: has values that are not finite")
    return centroids.float()


def _read_array(path: Path) -> Any:
    from safetensors.numpy import load_file

    if path.suffix in (".npy", ".safetensors"):
        check_file(path)  # a pipe would be waited for
        if path.stat().st_size > MAX_UNITS_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size} bytes; wanted at most {MAX_UNITS_BYTES}, as no "
                "centroids have more"
            )
    try:
        if path.suffix == ".npy":
            # Mapped: a header that claims more than there is allocates nothing.
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        if path.suffix == ".safetensors":
            arrays = load_file(path)
            if len(arrays) == 1:
                return next(iter(arrays.values()))
            raise ValueError(f"it holds {len(arrays)} tensors; wanted one")
    except Exception as error:  # safetensors raises its own types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is no readable file of centroids: {reason}") from error
    raise UsageError(
        f"{path}: centroids come as .npy or .safetensors, not as a pickle; for a k-means of "
        "scikit-learn: np.save('centroids.npy', kmeans.cluster_centers_)"
    )


def _clip(calibration: Any) -> Tensor:
    """Samples of a clip in [-1, 1]. Raises UsageError."""
    if isinstance(calibration, str | os.PathLike):
        calibration = _read_wav(Path(calibration))
    clip = torch.as_tensor(np.asarray(calibration, dtype=np.float32)).squeeze()
    if clip.ndim != 1 or clip.shape[0] < RATE // 10 or not torch.isfinite(clip).all():
        raise UsageError(
            f"a calibration clip is 0.1 s or more of finite samples at {RATE} Hz; got shape "
            f"{tuple(clip.shape)}"
        )
    return clip[: MAX_CALIBRATION_SECONDS * RATE]


def _read_wav(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")  # a pipe would be waited for
        with wave.open(os.fspath(path)) as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if rate == RATE and width in (2, 4):
                raw = file.readframes(MAX_CALIBRATION_SECONDS * RATE)
                samples = np.frombuffer(raw, f"<i{width}").reshape(-1, channels)
                return samples.mean(axis=1) / (1 << (8 * width - 1))
        what = f"{rate} Hz, {8 * width} bits"
    except (OSError, EOFError, wave.Error, ValueError) as error:
        what = str(error) or type(error).__name__
    raise UsageError(
        f"calibration {path}: {what}; wanted a WAV file of {RATE} Hz and 16 bits: "
        f"ffmpeg -i CLIP -ar {RATE} -ac 1 calibration.wav"
    )
