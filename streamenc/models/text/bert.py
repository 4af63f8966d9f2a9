"""BERT and RoBERTa: a vector of a text (arXiv 1810.04805, 1907.11692; of sentences 1908.10084).

Token, position and type embeddings -> layers that normalise behind each branch -> one vector: the
first token's state, the mean or the largest of all, or BERT's pooler of the first. RoBERTa and
XLM-R count positions from the padding token's id on, and are BERT otherwise.

Layout: transformers' folders of BertModel, RobertaModel and XLMRobertaModel, with or without a head
on top, which is not read; those of sentence-transformers, which say the pooling; old ones with
`gamma` and `beta` in their norms.
"""

from __future__ import annotations

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

FAMILIES = ("bert", "roberta", "xlm-roberta")
WORDS = "embeddings.word_embeddings.weight"
MAX_SIZE = 1 << 20
# As in config.json, of bert-base; a config may leave them out.
PUBLISHED: dict[str, Any] = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
# From the second number up to the first.
_RANGES = {
    **dict.fromkeys(("vocab_size", "hidden_size", "num_attention_heads"), (MAX_SIZE, 1)),
    **dict.fromkeys(("intermediate_size", "type_vocab_size"), (MAX_SIZE, 1)),
    "num_hidden_layers": (MAX_LAYERS, 1),
    "max_position_embeddings": (MAX_SIZE, 8),
    "pad_token_id": (MAX_SIZE, 0),
}
# Width of the published models.
VARIANTS = {"bert-base": 768, "bert-large": 1024, "minilm": 384}
_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm2": "output.LayerNorm",
}


@dataclass(frozen=True, slots=True)
class BertShape:
    """A network.

    first  The position of a text's first token: RoBERTa leaves out those up to the padding's id.
    """

    family: str
    words: int
    width: int
    layers: int
    heads: int
    hidden: int
    positions: int
    types: int
    first: int
    eps: float
    act: str

    @classmethod
    def of(cls, config: dict[str, Any]) -> BertShape:
        """Raises ValueError for a config that makes no sense, or of another model."""
        c = {**PUBLISHED, **{k: v for k, v in config.items() if k in PUBLISHED and v is not None}}
        for key, (most, least) in _RANGES.items():
            whole_number(key, c[key], most, least)
        eps = c["layer_norm_eps"]
        if type(eps) not in (int, float) or not 0 < eps < 1:
            raise ValueError(f"layer_norm_eps is {eps!r}; wanted a number from 0 to 1")
        wanted = {"position_embedding_type": "absolute", "is_decoder": False}
        for key, value in wanted.items():
            if config.get(key, value) not in (value, None):
                raise ValueError(f"{key} is {config[key]!r}; only {value!r} is known")
        if c["hidden_act"] not in tuple(_ACTIVATIONS):
            known = ", ".join(_ACTIVATIONS)
            raise ValueError(f"hidden_act is {c['hidden_act']!r}; known are {known}")
        if c["hidden_size"] % c["num_attention_heads"]:
            raise ValueError(
                f"{c['num_attention_heads']} heads do not divide a width of {c['hidden_size']}"
            )
        family = config.get("model_type", "bert")
        first = 0 if family == "bert" else c["pad_token_id"] + 1
        if first + 2 > c["max_position_embeddings"]:
            raise ValueError(f"pad_token_id is {c['pad_token_id']}, behind all positions")
        return cls(
            family=family,
            words=c["vocab_size"],
            width=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=c["num_attention_heads"],
            hidden=c["intermediate_size"],
            positions=c["max_position_embeddings"],
            types=c["type_vocab_size"],
            first=first,
            eps=eps,
            act=c["hidden_act"],
        )


class _Layer(nn.Module):
    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        width, self.heads, self.act = shape.width, shape.heads, shape.act
        self.query, self.key, self.value, self.out = (
            Linear(width, width, bias=True, rows=16) for _ in range(4)
        )
        self.norm1 = nn.LayerNorm(width, eps=shape.eps)
        self.fc1 = Linear(width, shape.hidden, bias=True, rows=16)
        self.fc2 = Linear(shape.hidden, width, bias=True, rows=16)
        self.norm2 = nn.LayerNorm(width, eps=shape.eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norm1(x + self.out(attended.transpose(1, 2).flatten(2)))
        y: Tensor = self.norm2(
            x + self.fc2(F.gelu(self.fc1(x), approximate=_ACTIVATIONS[self.act]))
        )
        return y


class BertEncoder(TextEncoder):
    """Texts -> vectors, of BERT or RoBERTa."""

    def __init__(self, shape: BertShape, sentence: Sentence, tokens: Tokens) -> None:
        super().__init__(shape.family, shape.width, shape.words, sentence, tokens)
        self.shape = shape
        width = shape.width
        self.words = nn.Embedding(shape.words, width)
        self.positions = nn.Embedding(shape.positions, width)
        self.types = nn.Embedding(shape.types, width)
        self.norm = nn.LayerNorm(width, eps=shape.eps)
        self.layers = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        pools = sentence.pooling == "pooler"
        self.pooler = nn.Linear(width, width) if pools else None

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        first = self.shape.first
        places = torch.arange(first, first + ids.shape[1], device=ids.device)
        x = self.words(ids) + self.types.weight[0] + self.positions(places)
        x = self.norm(x)
        seen = mask[:, None, None]
        for layer in self.layers:
            x = layer(x, seen)
        states: Tensor = x
        return states

    def pooled(self, first: Tensor) -> Tensor:
        assert self.pooler is not None
        return torch.tanh(self.pooler(first))


def recognises(checkpoint: Checkpoint) -> bool:
    """Whether the tensors' names are BERT's; models of other kinds that have them say so in their
    config."""
    stated = checkpoint.config.get("model_type", "bert")
    return stated in FAMILIES and WORDS in checkpoint.renamed(_bare)


def published_spec(variant: str) -> StreamSpec:
    """What a published encoder promises: one of `VARIANTS`."""
    return text_spec("bert", VARIANTS[variant], Steps())


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
    """The encoder; there is no decoder.

    output     What stands for a text: "mean" of all tokens' states, "cls" (the first one's), "max",
               or "pooler"; as the checkpoint says where not given, else "mean".
    normalize  Whether vectors are brought to length 1; as the checkpoint says where not given.
    prefix     Put before each text: text, or the name of one of the checkpoint's prompts.
    tokens     Of a text at most, special ones among them; longer texts are cut there.
    """
    if part == "decoder":
        raise UsageError(f"{name} makes vectors of texts; it has no decoder")
    checkpoint = checkpoint.renamed(_bare)
    if WORDS not in checkpoint:
        raise CheckpointError(
            f"{checkpoint.name}: none of its {len(checkpoint.names)} tensors is named as in BERT "
            f"({WORDS})"
        )
    try:
        shape = BertShape.of(checkpoint.config)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.name}: its config cannot be used: {error}") from error
    how = sentence(
        checkpoint,
        shape.positions - shape.first,
        output=output,
        normalize=normalize,
        prefix=prefix,
        tokens=tokens,
    )
    ids = read_tokens(checkpoint, how.longest, shape.words)
    with torch.device("meta"):
        encoder = BertEncoder(shape, how, ids)
    if layers := _more_layers(checkpoint, shape):
        raise CheckpointError(
            f"{checkpoint.name}: it has {layers} layers, its config says {shape.layers}"
        )
    fill(encoder, _origins(encoder), checkpoint)
    # Old folders keep numbers of positions and types, which are no weights.
    checkpoint.check_used(
        "encoder.layer.", "embeddings.", besides=("position_ids", "token_type_ids")
    )
    return encoder, None


def _bare(name: str) -> str:
    """A tensor's name without what heads put before it, with norms named as today."""
    name = re.sub(r"^(bert|roberta|model)\.", "", name)
    return re.sub(
        r"LayerNorm\.gamma$",
        "LayerNorm.weight",
        re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name),
    )


def _more_layers(checkpoint: Checkpoint, shape: BertShape) -> int:
    """How many layers there are, where these are more than the config says; else 0."""
    found = [re.match(r"encoder\.layer\.(\d+)\.", name) for name in checkpoint.names]
    count = 1 + max((int(match[1]) for match in found if match), default=-1)
    return count if count > shape.layers else 0


def _origins(encoder: BertEncoder) -> dict[str, Origin]:
    origins: dict[str, Origin] = {
        "words.weight": WORDS,
        "positions.weight": "embeddings.position_embeddings.weight",
        "types.weight": "embeddings.token_type_embeddings.weight",
    }
    for end in ("weight", "bias"):
        origins[f"norm.{end}"] = f"embeddings.LayerNorm.{end}"
        origins[f"pooler.{end}"] = f"pooler.dense.{end}"
        for i in range(len(encoder.layers)):
            for ours, theirs in _LAYER.items():
                origins[f"layers.{i}.{ours}.{end}"] = f"encoder.layer.{i}.{theirs}.{end}"
    return origins
