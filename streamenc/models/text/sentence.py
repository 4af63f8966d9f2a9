"""What a checkpoint says of how token states become one vector: the files of sentence-transformers.

modules.json names the modules behind the transformer: pooling, and a normalisation perhaps.
1_Pooling/config.json says which pooling, config_sentence_transformers.json the prefixes that the
model was trained with, by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.checkpoints.configs import read_config, read_json
from streamenc.checkpoints.weightfiles import reason_of
from streamenc.errors import CheckpointError, UsageError

# cls     The first token's state.
# mean    Of all tokens' states.
# max     The largest of all tokens in each channel.
# pooler  BERT's dense layer and tanh on the first token's.
POOLINGS = ("cls", "mean", "max", "pooler")
_MODES = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
_KNOWN = ("Transformer", "Pooling", "Normalize")
MAX_MODULES = 16


@dataclass(frozen=True, slots=True)
class Sentence:
    """How a text becomes a vector.

    Attributes:
        prefix: Put before each text.
        longest: Tokens of a text at most.
    """

    pooling: str
    normalised: bool
    prefix: str
    longest: int


def sentence(
    checkpoint: Checkpoint, positions: int, *, output: Any, normalize: Any, prefix: Any, tokens: Any
) -> Sentence:
    """What the checkpoint says, with what a user asks for otherwise.

    positions  Tokens that the model can take.

    Raises CheckpointError, UsageError.
    """
    said = _said(checkpoint)
    pooling, normalised, prompts, longest = said
    if output is not None:
        pooling = options.choice("output", output, POOLINGS)
    if normalize is not None:
        normalised = options.flag("normalize", normalize)
    most = min(positions, longest or positions)
    if tokens is not None:
        most = options.integer("tokens", tokens, 2, positions)
    if not isinstance(prefix, str):
        raise UsageError(f"option 'prefix' must be text; got {prefix!r}")
    return Sentence(pooling, normalised, prompts.get(prefix, prefix), most)


def _said(checkpoint: Checkpoint) -> tuple[str, bool, dict[str, str], int]:
    """Pooling, whether it is normalised, prefixes by name, and tokens at most (0: nothing said)."""
    folder = checkpoint.folder
    if folder is None:
        return "mean", False, {}, 0
    modules = _modules(checkpoint)
    kinds = [kind for kind, _ in modules]
    if odd := [kind for kind in kinds if kind not in _KNOWN]:
        raise CheckpointError(
            f"{checkpoint.name}: modules.json names {odd[0]!r} behind the transformer; wanted "
            f"{', '.join(_KNOWN)}. Its vectors would be others without it"
        )
    where = dict(modules).get("Pooling", "1_Pooling")
    pooling = _pooling(checkpoint, read_config(folder / where / "config.json"))
    prompts = read_config(folder / "config_sentence_transformers.json").get("prompts")
    known = prompts if isinstance(prompts, dict) else {}
    longest = read_config(folder / "sentence_bert_config.json").get("max_seq_length")
    return (
        pooling,
        "Normalize" in kinds,
        {str(name): str(text) for name, text in known.items()},
        longest if type(longest) is int and longest > 1 else 0,
    )


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """(kind, folder) of each module, in their order."""
    assert checkpoint.folder is not None
    path = checkpoint.folder / "modules.json"
    if not path.exists():
        return []
    listed = read_json(path)
    try:
        found = [(str(one["type"]).rpartition(".")[2], str(one.get("path", ""))) for one in listed]
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is no list of modules: {reason_of(error)}") from error
    if len(found) > MAX_MODULES or any("/" in path or ".." in path for _, path in found):
        raise CheckpointError(f"{path}: wanted a few modules, each in a folder beside it")
    return found


def _pooling(checkpoint: Checkpoint, said: dict[str, Any]) -> str:
    modes = [
        key.removeprefix("pooling_mode_")
        for key, value in said.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    named = said.get("pooling_mode")
    if isinstance(named, str):
        modes = [{"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}.get(named, named)]
    if not modes:
        return "mean"
    if len(modes) > 1 or modes[0] not in _MODES:
        raise CheckpointError(
            f"{checkpoint.name}: its pooling is {' and '.join(modes)}; wanted one of "
            f"{', '.join(_MODES)}: give output=cls, mean or max"
        )
    if said.get("include_prompt", True) is not True and modes[0] != "cls_token":
        raise CheckpointError(
            f"{checkpoint.name}: its pooling leaves the prefix's tokens out (include_prompt is "
            "false), which is not known here"
        )
    return _MODES[modes[0]]
