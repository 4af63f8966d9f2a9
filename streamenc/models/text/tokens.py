"""Tokenizers of checkpoints, which `tokenizers` runs: tokenizer.json, or BERT's vocab.txt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.checkpoints.configs import MAX_CONFIG_BYTES, TOKENIZER, VOCABULARY, read_config
from streamenc.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of one text: more is no segment of a stream, and takes long to cut into tokens.
MAX_TEXT_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 4 * MAX_CONFIG_BYTES


class Tokens:
    """Texts to ids, with the special tokens that the checkpoint's tokenizer puts around them.

    Attributes:
        longest: A text of more tokens, special ones among them, is cut there.
        digest: Tells the tokenizer from others.
    """

    def __init__(self, tokenizer: Tokenizer, longest: int) -> None:
        # A checkpoint's own settings for batches: some pad to 128 tokens, whatever the text.
        tokenizer.no_padding()
        tokenizer.enable_truncation(longest)
        self.longest = longest
        self.digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()[:16]
        self._tokenizer = tokenizer

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, at most `longest`."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def overlong(self, texts: Sequence[str]) -> int:
        """How many of the texts are cut."""
        return sum(bool(one.overflowing) for one in self._tokenizer.encode_batch(list(texts)))

    @property
    def largest(self) -> int:
        """The largest id that there is."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def read_tokens(checkpoint: Checkpoint, longest: int, words: int) -> Tokens:
    """The tokenizer beside a checkpoint's weights.

    longest  Tokens that the model takes; `words`: how many ids it knows.

    Raises:
        CheckpointError: Where there is none, it cannot be read, or is of another model.
        UsageError: Where `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            "models of text need the package tokenizers: pip install 'streamenc[text]'"
        ) from error
    folder = checkpoint.folder
    path = None if folder is None else folder / TOKENIZER
    if folder is None or path is None:
        raise _missing(checkpoint)
    listed = folder / VOCABULARY
    found: Tokens | None = None
    try:
        if path.is_file():
            _check_size(path)
            found = Tokens(Tokenizer.from_file(str(path)), longest)
        elif listed.is_file():
            _check_size(listed)
            found = Tokens(_word_pieces(folder, listed), longest)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises nothing more special for what is malformed
        raise CheckpointError(
            f"{checkpoint.name}: its tokenizer cannot be read: {error}"
        ) from error
    if found is None:
        raise _missing(checkpoint)
    if found.largest >= words:
        raise CheckpointError(
            f"{checkpoint.name}: its tokenizer has ids up to {found.largest}, the model {words} "
            "words; they are not of one model"
        )
    return found


def _missing(checkpoint: Checkpoint) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint.name}: there is neither a {TOKENIZER} nor a {VOCABULARY} beside the weights. "
        "AutoTokenizer.from_pretrained(...).save_pretrained(folder) of transformers writes one"
    )


def _check_size(path: Path) -> None:
    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes is too large for a tokenizer")


def _word_pieces(folder: Path, words: Path) -> Tokenizer:
    """BERT's tokenizer of old folders, which have a list of words alone."""
    from tokenizers.implementations.bert_wordpiece import BertWordPieceTokenizer

    said: dict[str, Any] = read_config(folder / "tokenizer_config.json")
    lower = bool(said.get("do_lower_case", True))
    strip = said.get("strip_accents")
    made: Any = BertWordPieceTokenizer(
        str(words),
        lowercase=lower,
        strip_accents=strip if isinstance(strip, bool) else None,
        handle_chinese_chars=bool(said.get("tokenize_chinese_chars", True)),
    )
    tokenizer: Tokenizer = made._tokenizer
    return tokenizer
