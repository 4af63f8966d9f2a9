"""Encoders of text, of the published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.encoders import Encoder


def _save(folder: Path, model: Any) -> None:
    """With a tokenizer of letters: what it costs depends on how many tokens a text has."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    marks = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    letters = {chr(code): i + 3 for i, code in enumerate((*range(33, 127), *range(1040, 1104)))}
    tokenizer = Tokenizer(models.WordPiece(marks | letters, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    model.save_pretrained(folder)


def save_minilm(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
    _save(folder, BertModel(config))


def save_bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    _save(folder, BertModel(BertConfig()))


ENCODERS = [
    Encoder("MiniLM, texts", "bert", save_minilm, seconds=20),
    Encoder("BERT base, texts", "bert", save_bert, seconds=20),
]
