"""Models of text: BERT, RoBERTa, XLM-R, T5, each with a tokenizer of a few letters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import references
from tests.support.zoo.row import ALONE, Promise, Row, other

LETTERS = "abcdefgh"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS) + 3,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 30,
    "pad_token_id": 0,
}
T5_SMALL: dict[str, Any] = {
    "vocab_size": len(WORDS) + 3,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_heads": 3,
    "num_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "feed_forward_proj": "gated-gelu",
}


def bert(family: str = "bert", **overrides: Any) -> Any:
    """transformers' model with random weights."""
    transformers = references.transformers
    kind = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[family]
    config = getattr(transformers, f"{kind}Config")(**SMALL | overrides)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    references.randomise(model)
    return model


def t5(**overrides: Any) -> Any:
    transformers = references.transformers
    model = transformers.T5EncoderModel(transformers.T5Config(**T5_SMALL | overrides)).eval()
    references.randomise(model)
    with torch.no_grad():
        bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        bias.weight.copy_(
            torch.randn(bias.weight.shape, generator=torch.Generator().manual_seed(3))
        )
    return model


def save_tokenizer(folder: Path, *, first: str = "[CLS]") -> None:
    """tokenizer.json; each text begins with `first` and ends with [SEP]."""
    tokenizers = pytest.importorskip("tokenizers")
    entries = {word: i for i, word in enumerate(WORDS)}
    pieces = tokenizers.models.WordPiece(entries, unk_token="[UNK]")
    made = tokenizers.Tokenizer(pieces)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A [SEP]",
        special_tokens=[(first, entries[first]), ("[SEP]", entries["[SEP]"])],
    )
    # As sentence-transformers saves it: for batches of one length.
    made.enable_padding(length=25)
    made.enable_truncation(25)
    made.save(str(folder / "tokenizer.json"))
    # Else transformers builds one of its own around the list of words.
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def save_bert(family: str = "bert", **overrides: Any) -> Any:
    def save(folder: Path) -> None:
        bert(family, **overrides).save_pretrained(folder)
        save_tokenizer(folder)

    return save


def save_t5(folder: Path) -> None:
    """As FRIDA is laid out: by sentence-transformers, with prefixes by name."""
    t5().save_pretrained(folder)
    save_tokenizer(folder, first="[UNK]")
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    prompts = {"prompts": {"query": "a b: ", "paraphrase": "c: "}}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


ROWS = [
    Row("bert", "bert", save_bert(), [ALONE]),
    Row("roberta", "roberta", save_bert("roberta"), [ALONE], options={"output": "cls"}),
    Row("xlm-roberta", "xlm-roberta", save_bert("xlm-roberta"), [ALONE], options={"tokens": 9}),
    Row("t5", "t5", save_t5, [ALONE], options={"prefix": "query", "tokens": 20}),
]
PUBLISHED: dict[str, Promise] = {
    "sentence-transformers/all-MiniLM-L6-v2": ALONE,
    "google-bert/bert-base-uncased": ALONE,
    "ai-forever/FRIDA": ALONE,
}
FIELDS = dict.fromkeys(PUBLISHED, 1)
CONFIGURED = [
    ("bert", other("layer_norm_eps", 1e-6)),
    ("bert", other("num_attention_heads", 4)),
    ("bert", other("hidden_act", "gelu_new")),
    ("roberta", other("pad_token_id", 1)),
    ("xlm-roberta", other("layer_norm_eps", 1e-6)),
    ("t5", other("relative_attention_max_distance", 24)),
]
ASKED: list[tuple[str, dict[str, Any]]] = [
    ("bert", {"output": "cls"}),
    ("bert", {"tokens": 12}),
    ("t5", {"prefix": ""}),
    ("t5", {"normalize": False}),
]
