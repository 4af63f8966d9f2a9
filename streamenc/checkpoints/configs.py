"""What stands beside weights as JSON: the model's config, and how its input is prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamenc.checkpoints.weightfiles import check_file, reason_of
from streamenc.errors import CheckpointError

MAX_CONFIG_BYTES = 16 << 20
# No published model has a size beyond, and torch makes no tensors of what is.
MAX_SIZE = 1 << 16
# Each layer is made before its weights are looked for, so their number is a matter of time.
MAX_LAYERS = 1000
CONFIG, PREPROCESSOR, PROCESSOR = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
TOKENIZER, VOCABULARY = "tokenizer.json", "vocab.txt"
# Of models of text: how texts become tokens, and these one vector.
_TEXTS = (
    TOKENIZER,
    VOCABULARY,
    "tokenizer_config.json",
    "modules.json",
    "*_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
# All that is read of a folder beside its weights.
CONFIGS = (CONFIG, PREPROCESSOR, PROCESSOR, *_TEXTS)
# Under which keys transformers 5 keeps in PROCESSOR what PREPROCESSOR held alone before.
_PREPARATIONS = ("feature_extractor", "audio_processor", "image_processor")


def configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A folder's config, and its preparation; each is empty where there is none.

    The preparation is a processor's where that has one, else preprocessor_config.json, as
    transformers looks for it. Raises CheckpointError.
    """
    processor = read_config(folder / PROCESSOR)
    for key in _PREPARATIONS:
        preparation = processor.get(key)
        if isinstance(preparation, dict):
            return read_config(folder / CONFIG), preparation
    return read_config(folder / CONFIG), read_config(folder / PREPROCESSOR)


def read_config(path: Path) -> dict[str, Any]:
    """A file's JSON object; empty where there is no file. Raises CheckpointError."""
    if not path.exists():
        return {}
    check_file(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes is too large for a config")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON: {reason_of(error)}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: wanted a JSON object, got a {type(config).__name__}")
    return config


def whole_number(key: str, value: object, most: int = MAX_SIZE, least: int = 1) -> int:
    """`value`, which a config has under `key`, as an int within [least, most].

    Raises ValueError.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key} is {value!r:.80}; wanted a whole number from {least} to {most}")
    return value


def whole_numbers(key: str, value: object, most: int = MAX_SIZE, count: int = 16) -> list[int]:
    """`value`, which a config has under `key`, as a list of 1 to `count` ints within [1, most].

    Raises ValueError.
    """
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= count:
        raise ValueError(f"{key} is {value!r:.80}; wanted a list of 1 to {count} numbers")
    return [whole_number(f"one of {key}", number, most) for number in value]
