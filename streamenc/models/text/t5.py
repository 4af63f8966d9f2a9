"""T5's encoder: a vector of a text (arXiv 1910.10683); FRIDA is one, for Russian and English.

No positions but a bias on each attention score, by the distance of two tokens in buckets, which the
first layer has for all; scores are not scaled; norms have no mean and no bias. FRIDA takes the
first token's state, of length 1, and texts with a prefix that says what the vector is for.

Layout: transformers' folders of T5EncoderModel and T5Model, of which the encoder alone is read;
those of sentence-transformers, which say the pooling and the prefixes.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint, Origin, fill
from streamenc.checkpoints.configs import MAX_LAYERS, whole_number
from streamenc.errors import CheckpointError, UsageError
from streamenc.layers.linear import Linear
from streamenc.models.model import Model
from streamenc.models.text.sentence import Sentence, sentence
from streamenc.models.text.textencoder import TextEncoder, text_spec
from streamenc.models.text.tokens import Tokens, read_tokens
from streamenc.spec import Steps, StreamSpec

MAX_SIZE = 1 << 20
# T5 has no positions that end; its published models were trained on so many tokens.
LONGEST, MOST = 512, 4096
BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
WORDS = ("shared.weight", "encoder.embed_tokens.weight")
_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "relative_attention_num_buckets")
_DEFAULTS: dict[str, Any] = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}
_FEED_FORWARDS = ("relu", "gated-gelu")


@dataclass(frozen=True, slots=True)
class T5Shape:
    """A network.

    head      Channels of an attention head; heads * head need not be the width.
    buckets   Of distances between tokens, half of them for either direction.
    distance  From this one on all are of the last bucket.
    gated     Whether the feed-forward is GELU times a second branch, or ReLU.
    """

    words: int
    width: int
    layers: int
    heads: int
    head: int
    hidden: int
    buckets: int
    distance: int
    eps: float
    gated: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> T5Shape:
        """Raises ValueError for a config that makes no sense, or of another model."""
        c = {**_DEFAULTS, **{key: value for key, value in config.items() if value is not None}}
        ranges = dict.fromkeys(_SIZES, MAX_SIZE) | {"num_layers": MAX_LAYERS}
        for key, most in ranges.items():
            whole_number(key, c.get(key), most)
        buckets, distance = (
            c["relative_attention_num_buckets"],
            c["relative_attention_max_distance"],
        )
        if buckets % 4 or type(distance) is not int or not buckets // 4 < distance <= MAX_SIZE:
            raise ValueError(
                f"{buckets} buckets of distances up to {distance!r}; wanted a multiple of 4, and "
                "more distance than a quarter of it"
            )
        eps = c["layer_norm_epsilon"]
        if type(eps) is not float or not 0 < eps < 1:
            raise ValueError(f"layer_norm_epsilon is {eps!r}; wanted a number from 0 to 1")
        if c["feed_forward_proj"] not in _FEED_FORWARDS:
            raise ValueError(
                f"feed_forward_proj is {c['feed_forward_proj']!r}; known are "
                f"{', '.join(_FEED_FORWARDS)}"
            )
        return cls(
            words=c["vocab_size"],
            width=c["d_model"],
            layers=c["num_layers"],
            heads=c["num_heads"],
            head=c["d_kv"],
            hidden=c["d_ff"],
            buckets=buckets,
            distance=distance,
            eps=eps,
            gated=c["feed_forward_proj"] == "gated-gelu",
        )


class _Layer(nn.Module):
    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        inner, self.heads, self.gated = shape.heads * shape.head, shape.heads, shape.gated
        self.norm1 = nn.RMSNorm(shape.width, eps=shape.eps)
        self.query, self.key, self.value = (Linear(shape.width, inner, rows=16) for _ in range(3))
        self.out = Linear(inner, shape.width, rows=16)
        self.norm2 = nn.RMSNorm(shape.width, eps=shape.eps)
        self.fc1 = Linear(shape.width, shape.hidden, rows=16)
        self.gate = Linear(shape.width, shape.hidden, rows=16) if shape.gated else None
        self.fc2 = Linear(shape.hidden, shape.width, rows=16)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (
            linear(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        if self.gate is None:
            hidden = F.relu(self.fc1(y))
        else:
            hidden = F.gelu(self.gate(y), approximate="tanh") * self.fc1(y)
        z: Tensor = x + self.fc2(hidden)
        return z


class T5Encoder(TextEncoder):
    """Texts -> vectors, of T5."""

    def __init__(self, shape: T5Shape, sentence: Sentence, tokens: Tokens) -> None:
        super().__init__("t5", shape.width, shape.words, sentence, tokens)
        self.shape = shape
        self.words = nn.Embedding(shape.words, shape.width)
        self.bias = nn.Embedding(shape.buckets, shape.heads)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.eps)

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        places = torch.arange(ids.shape[1], device=ids.device)
        buckets = self._buckets(places[None] - places[:, None])
        bias = self.bias(buckets).permute(2, 0, 1)[None]
        bias = bias.masked_fill(~mask[:, None, None], torch.finfo(x.dtype).min)
        for layer in self.layers:
            x = layer(x, bias)
        states: Tensor = self.norm(x)
        return states

    def _buckets(self, behind: Tensor) -> Tensor:
        """Of how far a key lies behind the query: one bucket for each near distance, then wider
        ones, growing as the logarithm. In float32, as published: it decides at the borders."""
        half = self.shape.buckets // 2
        near = half // 2
        distance = behind.abs()
        far = torch.log(distance.clamp(min=near).float() / near)
        far = far / math.log(self.shape.distance / near) * (half - near)
        wide = (near + far.long()).clamp(max=half - 1)
        return half * (behind > 0) + torch.where(distance < near, distance, wide)


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are T5's; others that have them say so in their config."""
    return checkpoint.config.get("model_type", "t5") == "t5" and BIAS in checkpoint


def published_spec(variant: str) -> StreamSpec:
    """What FRIDA promises; there are no other variants."""
    return text_spec("t5", 1536, Steps())


def load(
    name: str,
    checkpoint: Checkpoint,
    part: str,
    *,
    output: str | None = None,
    normalize: bool | None = None,
    prefix: str = "",
    tokens: int | None = None,
) -> tuple[Model | None, Model | None]:
    """The encoder; T5's decoder writes text, and is not read.

    output     What stands for a text: "mean" of all tokens' states, "cls" (the first one's) or
               "max"; as the checkpoint says where not given, else "mean".
    normalize  Whether vectors are brought to length 1; as the checkpoint says where not given.
    prefix     Put before each text: text, or the name of one of the checkpoint's prompts, as
               search_query or paraphrase of FRIDA's.
    tokens     Of a text at most, special ones among them; longer texts are cut there.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes vectors of texts; it has no decoder")
    if BIAS not in checkpoint:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in T5's "
            f"encoder ({BIAS})"
        )
    try:
        shape = T5Shape.of(checkpoint.config)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name}: its config cannot be used: {error}") from error
    longest = LONGEST if tokens is None else MOST
    how = sentence(
        checkpoint, longest, output=output, normalize=normalize, prefix=prefix, tokens=tokens
    )
    if how.pooling == "pooler":
        raise UsageError("T5 has no pooler; output is cls, mean or max")
    ids = read_tokens(checkpoint, how.longest, shape.words)
    with torch.device("meta"):
        encoder = T5Encoder(shape, how, ids)
    found = [re.match(r"encoder\.block\.(\d+)\.", key) for key in checkpoint.names]
    layers = 1 + max(int(match[1]) for match in found if match)
    if layers != shape.layers:
        raise CheckpointError(
            f"{checkpoint.name}: it has {layers} layers, its config says {shape.layers}"
        )
    fill(encoder, _origins(encoder, checkpoint), checkpoint)
    checkpoint.check_used("encoder.block.")
    return encoder, None


def _origins(encoder: T5Encoder, checkpoint: Checkpoint) -> dict[str, Origin]:
    words = next((key for key in WORDS if key in checkpoint), WORDS[0])
    origins: dict[str, Origin] = {
        "words.weight": words,
        "bias.weight": BIAS,
        "norm.weight": "encoder.final_layer_norm.weight",
    }
    gated = encoder.shape.gated
    names = {
        "norm1": "layer.0.layer_norm",
        "query": "layer.0.SelfAttention.q",
        "key": "layer.0.SelfAttention.k",
        "value": "layer.0.SelfAttention.v",
        "out": "layer.0.SelfAttention.o",
        "norm2": "layer.1.layer_norm",
        "gate": "layer.1.DenseReluDense.wi_0",
        "fc1": f"layer.1.DenseReluDense.{'wi_1' if gated else 'wi'}",
        "fc2": "layer.1.DenseReluDense.wo",
    }
    for i in range(len(encoder.layers)):
        for ours, theirs in names.items():
            origins[f"layers.{i}.{ours}.weight"] = f"encoder.block.{i}.{theirs}.weight"
    return origins
