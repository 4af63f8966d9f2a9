"""What stands beside weights as JSON: the model's config, and how its input is prepared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from streamenc.checkpoints.weightfiles import exists, read_file, reason_of
from streamenc.errors import CheckpointError

MAX_CONFIG_BYTES = 16 << 20
# 16 MiB of `{}` would be 5 million objects, 300 MB. Indexes of shards have a value for each tensor.
MAX_VALUES, MAX_CONTAINERS, MAX_DEPTH = 500_000, 100_000, 32
# No published model has a size beyond, and torch makes no tensors of what is.
MAX_SIZE = 1 << 16
# Each layer is made before its weights are looked for, so their number is a matter of time.
# Published encoders have up to 68.
MAX_LAYERS = 256
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
    if not exists(path):
        return {}
    config = read_json(path)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: wanted a JSON object, got a {type(config).__name__}")
    return config


def read_json(path: Path) -> Any:
    """What a file beside weights says in JSON, once its size, number of values and depth are seen
    to be those of a config. Raises CheckpointError."""
    content = read_file(path, MAX_CONFIG_BYTES)
    # Each stands before it becomes an object in memory; those in texts count as well.
    values, containers = content.count(b","), content.count(b"{") + content.count(b"[")
    if values > MAX_VALUES or containers > MAX_CONTAINERS:
        raise CheckpointError(
            f"{path}: {values} values in {containers} objects and lists; wanted at most "
            f"{MAX_VALUES} in {MAX_CONTAINERS}, as no config has more"
        )
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no readable JSON: {reason_of(error)}") from error
    if _depth(value) > MAX_DEPTH:
        raise CheckpointError(f"{path}: nested more than {MAX_DEPTH} deep, as no config is")
    return value


def _depth(value: Any) -> int:
    """How deep a JSON value is nested; what is deeper than MAX_DEPTH is not looked at further."""
    level, depth = [v for v in (value,) if isinstance(v, dict | list)], 0
    while level and depth <= MAX_DEPTH:
        lists = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for inner in lists for v in inner if isinstance(v, dict | list)]
        depth += 1
    return depth


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
