"""SALMONN's ears: what its language model hears of sound, 88 vectors for each 30 s (Tang et al.,
arXiv 2310.13289; bytedance/SALMONN).

Audio, 16 kHz mono -> Whisper's encoder (50 states a second) and BEATs (50 features a second), each
normalised, one below the other -> a Q-Former over windows of 17 frames -> the language model's
width. Clips are 30 s long, zeros behind shorter ones for Whisper, so a segment of a stream is one.

With `inputs="features"` it is the Q-Former alone, on a stream of Whisper's states and BEATs'
features that others made: it sees each window by itself.

Layout: the published file, which holds what was trained (LayerNorms, Q-Former, projection); Whisper
and BEATs come from their own. The language model and what was trained of it are not read.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill, open_checkpoint
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.streamed import Chain, Span
from streamenc.models.model import Model
from streamenc.models.salmonn import beats as of_beats
from streamenc.models.salmonn.beats import RATE, BeatsEncoder, BeatsOptions
from streamenc.models.salmonn.beatsnetwork import BeatsShape
from streamenc.models.salmonn.qformer import QFormer, QFormerShape
from streamenc.models.whisper import whisper as of_whisper
from streamenc.models.whisper.modes import STATE_HOP, WindowEncoder
from streamenc.options import choice, number
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

STATES_PER_SECOND = RATE // STATE_HOP
HEAD_DIM = 64  # BERT's
MAX_SIZE = 1 << 16
# Shorter clips are padded to this much for BEATs.
LEAST_SAMPLES = RATE
INPUTS = ("sound", "features")
# Channels of the language model: of Vicuna 13B, and 7B.
PUBLISHED = {"": 5120, "7b": 4096}

_BERT = "speech_Qformer.bert."
_MARKS = ("speech_query_tokens", "speech_llama_proj.weight")
# What is not read of the file, by how its names begin.
_SKIPPED = ("llama_model.", f"{_BERT}embeddings.position_ids")


class QFormerEncoder(Model):
    """Whisper's states and BEATs' features (batch, speech + audio, frames), at 50 Hz -> vectors
    (batch, out, vectors)."""

    def __init__(self, qformer: QFormer) -> None:
        super().__init__()
        self.chain = Chain([qformer])
        shape, rate = qformer.shape, Fraction(STATES_PER_SECOND)
        self.spec = StreamSpec(
            name="salmonn",
            input=Port("features", rate, shape.speech + shape.audio),
            output=Port("features", rate * shape.queries / shape.window, shape.out),
            steps=self.steps,
            equality="offline",
            receptive_field=self.receptive_field(),
            note="of given features; the published model begins its windows anew every 30 s",
        )

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        return self.chain.step(x, state, end=end)


class SalmonnEncoder(Model):
    """16 kHz audio -> vectors (batch, out, vectors), those of a segment at its end.

    A segment is as long as Whisper's window. The last one may be shorter; it gives as many. There
    is no state: each segment is a clip of its own.
    """

    def __init__(self, whisper: WindowEncoder, beats: BeatsEncoder, qformer: QFormer) -> None:
        super().__init__()
        self.whisper, self.beats, self.qformer = whisper, beats, qformer
        self.segment = whisper.shape.positions * STATE_HOP
        steps = self.steps
        self.spec = StreamSpec(
            name="salmonn",
            input=Port("audio", Fraction(RATE), 1),
            output=Port("features", Fraction(RATE * steps.hop_out, steps.hop), qformer.shape.out),
            steps=steps,
            equality="segment",
            receptive_field=self.receptive_field(),
            note=f"each segment of {self.segment / RATE:g} s is a clip of its own, as published",
        )

    @property
    def steps(self) -> Steps:
        shape = self.qformer.shape
        vectors = self.whisper.shape.positions // shape.window * shape.queries
        return Steps(self.segment, self.segment, vectors, vectors)

    def reach(self, first: int, last: int) -> Span:
        vectors = self.steps.hop_out
        return first // vectors * self.segment, (last // vectors + 1) * self.segment - 1

    @property
    def like(self) -> Tensor:
        """Log-mel frames stay in float32 at least, so sound comes in as that."""
        return self.whisper.like

    def prepare(self) -> None:
        super().prepare()
        self.whisper.mel.prepare()

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        assert end or not x.shape[-1] % self.segment
        outputs = [x.new_zeros(len(x), self.spec.output.channels, 0)]
        if x.shape[-1]:
            outputs += [self._clip(clip) for clip in torch.split(x, self.segment, dim=-1)]
        return torch.cat(outputs, dim=-1), ()

    def _clip(self, x: Tensor) -> Tensor:
        dtype = self.qformer.queries.dtype
        audio = self.beats(F.pad(x, (0, max(0, LEAST_SAMPLES - x.shape[-1]))))
        speech = self.whisper(x)
        return self.qformer.of_clip(speech.to(dtype), audio.to(dtype)).to(x.dtype)


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises: "" or "7b"."""
    whisper = of_whisper.published_windows("large")
    with torch.device("meta"):
        beats = BeatsEncoder(shape := BeatsShape(), _beats_options(shape, whisper))
        qformer = QFormer(QFormerShape(out=PUBLISHED[variant]))
    return SalmonnEncoder(whisper, beats, qformer).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of what was trained of SALMONN."""
    return all(name in checkpoint for name in _MARKS)


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    whisper: Any = None,
    beats: Any = None,
    inputs: str = "sound",
    second_per_window: Any = None,
) -> tuple[Model, None]:
    """The encoder; there is no decoder, and the language model is not read.

    whisper   Weights of Whisper large-v2, with which the published models were trained: a folder, a
              file or a Hub name. By default the folder `whisper` beside the file.
    beats     Weights of BEATs, fine-tuned as BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt:
              likewise. By default the folder `beats` beside the file.
    inputs    "sound", or "features" for the Q-Former alone, which takes Whisper's states and, below
              them, BEATs' features of the same number; `whisper` and `beats` are not for that.
    second_per_window  How much sound the queries of a window see, as the training's config has it;
              0.333333 by default, where the file does not say it.

    Raises UsageError for options that do not fit, CheckpointError for weights that do not.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes vectors for a language model; it has no decoder")
    window = None
    if second_per_window is not None:
        window = round(STATES_PER_SECOND * number("second_per_window", second_per_window, 0.02, 30))
    shape = _shape(checkpoint, window)
    if choice("inputs", inputs, INPUTS) == "features":
        if whisper is not None or beats is not None:
            raise UsageError("with inputs=features there is no sound for whisper and beats")
        return QFormerEncoder(_qformer(checkpoint, shape)), None
    ears = of_whisper.whole_windows(_beside(checkpoint, "whisper", whisper))
    other = _beside(checkpoint, "beats", beats)
    other_shape = of_beats.shape_of(other)
    for what, found, wanted, trained in (
        ("Whisper", ears.shape.width, shape.speech, "large-v2, of 1280"),
        ("BEATs", other_shape.width, shape.audio, "BEATs_iter3_plus, of 768"),
    ):
        if found != wanted:
            raise CheckpointError(
                f"{checkpoint.name} was trained on {what} of {wanted} channels; the one given has "
                f"{found}. The published models go with {trained}"
            )
    if shape.window > ears.shape.positions:
        raise UsageError(
            f"a window of {shape.window} frames is longer than the {ears.shape.positions} of a clip"
        )
    options = _beats_options(other_shape, ears)
    hears = of_beats.encoder_of(other, other_shape, options)
    if options.window * other_shape.rows > ears.shape.positions:
        raise CheckpointError(
            f"{other.name}: with patches of {other_shape.patch} frames BEATs gives more features "
            "than Whisper has states; wanted patches of 16"
        )
    return SalmonnEncoder(ears, hears, _qformer(checkpoint, shape)), None


def _beats_options(shape: BeatsShape, whisper: WindowEncoder) -> BeatsOptions:
    """The whole clip as one window."""
    clip_ms = 1000 * whisper.shape.positions // STATES_PER_SECOND
    columns = max(1, (clip_ms - of_beats.FRAME_EXCESS_MS) // of_beats.column_ms(shape))
    return BeatsOptions(columns, columns, 0, (shape.layers,))


def _beside(checkpoint: Checkpoint, part: str, given: Any) -> Checkpoint:
    """The weights of a part that come from their own file. Raises UsageError."""
    if given is None:
        path = Path(checkpoint.name).expanduser()
        folder = (path if path.is_dir() else path.parent) / part
        if not folder.is_dir():
            raise UsageError(
                f"{checkpoint.name} holds no {part}: name its weights, {part}=PATH or a Hub name, "
                f"or put them into a folder {part} beside it; inputs=features does without"
            )
        given = folder
    return open_checkpoint(os.fspath(given))


def _shape(checkpoint: Checkpoint, window: int | None) -> QFormerShape:
    """From the tensors, and where `window` is None from what the training saved of its config.

    Raises CheckpointError.
    """
    name = checkpoint.name
    if not recognises(checkpoint):
        raise CheckpointError(
            f"{name}: wanted what was trained of SALMONN ({', '.join(_MARKS)}); is it another "
            "model, or only a part of one?"
        )
    layers = 0
    while f"{_BERT}encoder.layer.{layers}.attention.self.query.weight" in checkpoint:
        layers += 1

    def axes(tensor: str, count: int) -> tuple[int, ...]:
        shape = checkpoint.shape(tensor)
        if len(shape) != count or not all(1 <= n <= MAX_SIZE for n in shape):
            raise CheckpointError(f"{name}: tensor {tensor!r} has shape {shape}")
        return shape

    _, queries, width = axes("speech_query_tokens", 3)
    if width % HEAD_DIM or not layers:
        raise CheckpointError(
            f"{name}: a Q-Former of {layers} layers and {width} channels; wanted some layers, and "
            f"heads of {HEAD_DIM} channels as BERT has them"
        )
    return QFormerShape(
        speech=axes("ln_speech.weight", 1)[0],
        audio=axes("ln_audio.weight", 1)[0],
        width=width,
        heads=width // HEAD_DIM,
        hidden=axes(f"{_BERT}encoder.layer.0.intermediate_query.dense.weight", 2)[0],
        layers=layers,
        window=_window(checkpoint) if window is None else window,
        queries=queries,
        out=axes("speech_llama_proj.weight", 2)[0],
    )


def _window(checkpoint: Checkpoint) -> int:
    """Frames of a window, from the training's config where that was saved. Raises CheckpointError
    for windows that this Q-Former has not."""
    config = checkpoint.saved_beside("config", "model")
    for key in ("use_speech_Qformer", "window_level_Qformer"):
        if config.get(key, True) is not True:
            raise CheckpointError(
                f"{checkpoint.name}: its config has {key}={config[key]!r}; only True is known"
            )
    seconds = [config.get(key, 0.333333) for key in ("second_per_window", "second_stride")]
    frames = {
        round(STATES_PER_SECOND * n) if type(n) in (int, float) and 0.02 <= n <= 30 else 0
        for n in seconds
    }
    if len(frames) != 1 or frames == {0}:
        raise CheckpointError(
            f"{checkpoint.name}: its config has windows of {seconds[0]!r} s every {seconds[1]!r} s;"
            " only windows side by side are known, of 0.02 to 30 s"
        )
    return frames.pop()


def _qformer(checkpoint: Checkpoint, shape: QFormerShape) -> QFormer:
    """With its weights. Raises CheckpointError."""
    with torch.device("meta"):
        qformer = QFormer(shape)
    fill(qformer, _origins(shape), checkpoint)
    left = {n for n in checkpoint.names - set(checkpoint.read) if not n.startswith(_SKIPPED)}
    if left:
        raise CheckpointError(
            f"{checkpoint.name} has {len(left)} tensors that are neither of SALMONN's Q-Former nor "
            f"of its language model ({', '.join(sorted(left)[:3])}): was more of it trained?"
        )
    return qformer


def _origins(shape: QFormerShape) -> dict[str, Origin]:
    """Where each parameter comes from."""
    layers = {"norm_speech": "ln_speech", "norm_audio": "ln_audio", "project": "speech_llama_proj"}
    layers["norm"] = f"{_BERT}embeddings.LayerNorm"
    for index in range(shape.layers):
        ours, there = f"layers.{index}.", f"{_BERT}encoder.layer.{index}."
        for attention in ("attention", "crossattention"):
            for name in ("query", "key", "value"):
                layers[f"{ours}{attention}.{name}"] = f"{there}{attention}.self.{name}"
            layers[f"{ours}{attention}.out_proj"] = f"{there}{attention}.output.dense"
            layers[f"{ours}{attention}.norm"] = f"{there}{attention}.output.LayerNorm"
        layers[f"{ours}linear1"] = f"{there}intermediate_query.dense"
        layers[f"{ours}linear2"] = f"{there}output_query.dense"
        layers[f"{ours}norm"] = f"{there}output_query.LayerNorm"
    origins: dict[str, Origin] = {
        f"{ours}.{kind}": f"{there}.{kind}"
        for ours, there in layers.items()
        for kind in ("weight", "bias")
    }
    return origins | {"queries": lambda checkpoint: checkpoint.get("speech_query_tokens")[0]}
