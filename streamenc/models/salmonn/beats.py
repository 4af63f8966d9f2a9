"""BEATs: features of any sound, 50 a second (Chen et al., arXiv 2212.09058; microsoft/unilm).

Audio, 16 kHz mono -> log-mel frames as Kaldi has them (100 Hz, 128 bands) -> patches of 16 frames
and 16 bands, 8 of them for each 160 ms -> projection -> a convolution over 128 patches that stands
for positions -> transformer with deep norm, and a bias by distance that each query weighs.

The frames and patches are those of the whole recording. The published transformer attends to a
whole clip, of 10 s in its training, so no stream can equal it: here it runs on windows, each of
which equals the published model on a clip that begins and ends with it.

Layout: the published files, {"cfg", "model"}, of the pre-trained and the fine-tuned models; or the
tensors of "model" with the entries of "cfg" as a config.json. The classifier is not read.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.attention.windows import Windows
from streamenc.layers.fbank import Fbank
from streamenc.layers.streamed import Chain
from streamenc.models.hiddenstates import hidden_states
from streamenc.models.model import Model
from streamenc.models.salmonn.beatsnetwork import BANDS, BeatsShape, BeatsTransformer, Patches
from streamenc.options import integer
from streamenc.spec import Port, StreamSpec
from streamenc.state import State

RATE = 16_000
# A log-mel frame takes 25 ms, so the last one of a column needs so much more than its hop.
FRAME_MS, FRAME_EXCESS_MS = 10, 15
# All patches of a clip of 10 s, as the models were trained on; a window of 62 times 160 ms.
CLIP_MS = 10_000
MOST_MS = 120_000
MAX_SIZE = 1 << 16

# What the published models have in common and the network here takes for granted.
_FIXED: dict[str, Any] = {
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
# Names of a layer's parts, ours and the published ones.
_LAYER = {
    "out_proj": "self_attn.out_proj",
    "norm1": "self_attn_layer_norm",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm2": "final_layer_norm",
    "gate.linear": "self_attn.grep_linear",
}
_BIAS = "self_attn.relative_attention_bias.weight"
_MARKS = ("patch_embedding.weight", f"encoder.layers.0.{_BIAS}")


@dataclass(frozen=True, slots=True)
class BeatsOptions:
    """How it streams, in columns of patches, 160 ms each; see layers.attention.windows.Windows.

    outputs  Hidden states that come out.
    """

    window: int
    hop: int
    ahead: int
    outputs: tuple[int, ...]


class BeatsEncoder(Model):
    """16 kHz audio -> features (batch, width, patches); the 8 patches of each 160 ms side by side.

    A stream of fewer than 2,800 samples has no patch.
    """

    def __init__(self, shape: BeatsShape, options: BeatsOptions) -> None:
        super().__init__()
        self.shape, self.options = shape, options
        rows, channels = shape.rows, len(options.outputs) * shape.width
        net = BeatsTransformer(shape, options.window * rows, options.outputs)
        positions = (n * rows for n in (options.window, options.hop, options.ahead))
        self.chain = Chain([Fbank(RATE, BANDS), Patches(shape), Windows(net, channels, *positions)])
        steps = self.steps
        self.spec = StreamSpec(
            name="beats",
            input=Port("audio", Fraction(RATE), 1),
            output=Port("features", Fraction(RATE * steps.hop_out, steps.hop), channels),
            steps=steps,
            equality="window",
            receptive_field=self.receptive_field(),
            note=self._note(),
        )

    def _note(self) -> str:
        o, ms = self.options, column_ms(self.shape)
        again = f", anew every {o.hop * ms} ms" if o.hop < o.window else ""
        return f"the published model on windows of {o.window * ms} ms{again}"

    @property
    def like(self) -> Tensor:
        """The log-mel frames stay in float32 at least, so sound comes in as that."""
        fbank = self.chain.layers[0]
        assert isinstance(fbank, Fbank)
        return fbank.window

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        y, state = self.chain.step(x, state, end=end)
        return y.to(x.dtype), state


def published_spec(variant: str) -> StreamSpec:
    """What the encoder of a published model promises, with the default options."""
    shape = BeatsShape()
    with torch.device("meta"):
        return BeatsEncoder(shape, _options(shape)).spec


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are those of BEATs."""
    return all(name in checkpoint for name in _MARKS)


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    window_ms: Any = None,
    hop_ms: Any = None,
    ahead_ms: Any = None,
    layer: Any = None,
    layers: Any = None,
) -> tuple[BeatsEncoder, None]:
    """The encoder; there is no decoder. All options also come as strings, and times are multiples
    of 160 ms, the length of a patch.

    window_ms  How much the transformer sees at once; 9920 by default, the patches of 10 s.
    hop_ms    From window to window; by default the window's length, so that each patch is computed
              once. A shorter one costs as many times more, and gives what comes sooner.
    ahead_ms  How far before the window's end its newest patch lies that comes out; 0 by default.
    layer, layers  The hidden states that come out, in this order: 9, "6,9", [0, -1] or "all". 0 is
              what the first layer takes, -1 what the last one gives, which is the default. Several
              lie one below the other. Later layers are neither read nor run.

    Raises UsageError for options that do not go together, CheckpointError for weights that do not
    fit.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes features; it has no decoder")
    shape = shape_of(checkpoint)
    options = _options(shape, window_ms, hop_ms, ahead_ms, layer, layers)
    return encoder_of(checkpoint, shape, options), None


def column_ms(shape: BeatsShape) -> int:
    """The time of a column of patches."""
    return shape.patch * FRAME_MS


def encoder_of(checkpoint: Checkpoint, shape: BeatsShape, options: BeatsOptions) -> BeatsEncoder:
    """An encoder with its weights. Raises CheckpointError."""
    with torch.device("meta"):
        encoder = BeatsEncoder(shape, options)
    # What it computes without weights is not read: it is made anew, off the meta device.
    encoder.chain.layers[0] = Fbank(RATE, BANDS)
    fill(encoder, _origins(encoder), checkpoint)
    # Of layers that were not asked for, and of biases that all layers share, nothing is read.
    asked = range(max(options.outputs), shape.layers)
    skipped = ("predictor.", *(f"encoder.layers.{index}." for index in asked))
    left = {n for n in checkpoint.names - set(checkpoint.read) if not n.startswith(skipped)}
    if left := {n for n in left if not n.endswith(_BIAS)}:
        raise CheckpointError(
            f"{checkpoint.name} has {len(left)} tensors that BEATs of its cfg has not "
            f"({', '.join(sorted(left)[:3])}); is it a variant of the model?"
        )
    return encoder


def _options(
    shape: BeatsShape,
    window_ms: Any = None,
    hop_ms: Any = None,
    ahead_ms: Any = None,
    layer: Any = None,
    layers: Any = None,
) -> BeatsOptions:
    """The options checked, with their defaults. Raises UsageError."""
    ms = column_ms(shape)
    clip = max(1, (CLIP_MS - FRAME_EXCESS_MS) // ms)
    window = clip if window_ms is None else _columns("window_ms", window_ms, ms)
    ahead = 0 if ahead_ms is None else _columns("ahead_ms", ahead_ms, ms, least=0)
    hop = max(1, window - ahead) if hop_ms is None else _columns("hop_ms", hop_ms, ms)
    if hop + ahead > window:
        raise UsageError(
            "beats: a window is at least as long as hop_ms and ahead_ms together; got "
            f"{window * ms} for {hop * ms} and {ahead * ms}"
        )
    return BeatsOptions(window, hop, ahead, hidden_states(layer, layers, shape.layers))


def _columns(name: str, value: Any, ms: int, least: int = 1) -> int:
    """Milliseconds as columns of patches. Raises UsageError."""
    got = integer(name, value, least * ms, MOST_MS)
    if got % ms:
        raise UsageError(f"beats: {name} is {value!r}; wanted a multiple of {ms}, a patch's time")
    return got // ms


def shape_of(checkpoint: Checkpoint) -> BeatsShape:
    """From what was saved as "cfg" beside the weights, or config.json.

    Raises CheckpointError for another network, and where neither says what it is made of.
    """
    name = checkpoint.name
    if not recognises(checkpoint):
        raise CheckpointError(
            f"{name}: wanted the tensors of BEATs ({', '.join(_MARKS)}); is it another model?"
        )
    if any(tensor.startswith("quantize") for tensor in checkpoint.names):
        raise CheckpointError(
            f"{name} is a tokenizer of BEATs, which made labels for its training; wanted the model"
        )
    config = checkpoint.saved_beside("cfg") or checkpoint.config
    if not config:
        raise CheckpointError(
            f"{name}: wanted {{'cfg', 'model'}} as published, or a config.json with the entries of "
            "'cfg' beside the weights: tensors do not tell the heads, nor how far distances go"
        )
    for key, wanted in _FIXED.items():
        if config.get(key) != wanted:
            raise CheckpointError(
                f"{name}: its cfg has {key}={config.get(key)!r}; BEATs is known with {wanted!r}"
            )

    def number(key: str) -> int:
        value = config.get(key)
        if type(value) is not int or not 1 <= value <= MAX_SIZE:
            raise CheckpointError(
                f"{name}: its cfg has {key}={value!r}; wanted a whole number from 1 to {MAX_SIZE}"
            )
        return value

    shape = BeatsShape(
        patch=number("input_patch_size"),
        embedding=number("embed_dim"),
        width=number("encoder_embed_dim"),
        heads=number("encoder_attention_heads"),
        hidden=number("encoder_ffn_embed_dim"),
        layers=number("encoder_layers"),
        position_kernel=number("conv_pos"),
        position_groups=number("conv_pos_groups"),
        distances=(number("num_buckets"), number("max_distance")),
    )
    buckets, farthest = shape.distances
    if (
        shape.width % shape.heads
        or shape.width % shape.position_groups
        or shape.patch > BANDS
        or shape.layers > 1000
        or buckets < 4
        or farthest <= buckets // 4
    ):
        raise CheckpointError(
            f"{name}: heads and groups divide the width, a patch has up to {BANDS} bands, there "
            "are up to 1000 layers, and the largest distance is beyond a quarter of the buckets: "
            f"{shape}"
        )
    return shape


def _origins(model: BeatsEncoder) -> dict[str, Origin]:
    """Where each parameter comes from."""
    patches, net, heads = "chain.layers.1.", "chain.layers.2.net.", model.shape.heads
    origins: dict[str, Origin] = {
        f"{patches}weight": partial(_patch_weight, model.shape),
        f"{net}relative.weight": f"encoder.layers.0.{_BIAS}",
        f"{net}positions.weight": partial(Checkpoint.folded, prefix="encoder.pos_conv.0"),
        f"{net}positions.bias": "encoder.pos_conv.0.bias",
    }
    both = {
        f"{patches}norm": "layer_norm",
        f"{patches}project": "post_extract_proj",
        f"{net}norm": "encoder.layer_norm",
    }
    for index in range(max(model.options.outputs)):
        ours, there = f"{net}layers.{index}.", f"encoder.layers.{index}."
        both |= {ours + part: there + theirs for part, theirs in _LAYER.items()}
        for kind in ("weight", "bias"):
            names = [f"{there}self_attn.{p}_proj.{kind}" for p in "qkv"]
            origins[f"{ours}in_proj.{kind}"] = partial(_joined, names)
        origins[f"{ours}gate.scale"] = partial(_gate_scale, heads, f"{there}self_attn.grep_a")
    origins |= {
        f"{ours}.{kind}": f"{there}.{kind}"
        for ours, there in both.items()
        for kind in ("weight", "bias")
    }
    return origins


def _joined(names: list[str], checkpoint: Checkpoint) -> Tensor:
    return torch.cat([checkpoint.get(name) for name in names])


def _patch_weight(shape: BeatsShape, checkpoint: Checkpoint) -> Tensor:
    """Of a convolution over time and bands."""
    size = (shape.embedding, 1, shape.patch, shape.patch)
    return checkpoint.get("patch_embedding.weight", size).flatten(1)


def _gate_scale(heads: int, name: str, checkpoint: Checkpoint) -> Tensor:
    return checkpoint.get(name, (1, heads, 1, 1))[0]
