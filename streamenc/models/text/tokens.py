"""Tokenizers of checkpoints, which `tokenizers` runs: tokenizer.json, or BERT's vocab.txt."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.checkpoints.configs import MAX_CONFIG_BYTES, TOKENIZER, VOCABULARY, read_config
from streamenc.checkpoints.weightfiles import read_file, reason_of
from streamenc.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of one text: more is no segment of a stream, and takes long to cut into tokens.
MAX_TEXT_BYTES = 1 << 20
MAX_TOKENIZER_BYTES = 4 * MAX_CONFIG_BYTES
_PANIC = "PanicException"
# A whole number of eight digits or more, which is no text and no part of another number.
_LARGE = re.compile(rb"[:,\[]\s*(\d{8,})\s*[,\]}]")


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
        self._encoded(["", "a b"])  # some are readable, and fail at any text

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each text, at most `longest`. Raises CheckpointError."""
        return [encoding.ids for encoding in self._encoded(texts)]

    def overlong(self, texts: Sequence[str]) -> int:
        """How many of the texts are cut. Raises CheckpointError."""
        return sum(bool(one.overflowing) for one in self._encoded(texts))

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        try:
            return list(self._tokenizer.encode_batch(list(texts)))
        except BaseException as error:
            # A panic of the library is no Exception: nobody who catches those would be asked.
            if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
                raise
            raise CheckpointError(
                f"the tokenizer beside the weights fails at a text: {reason_of(error)}. Save it "
                "anew: AutoTokenizer.from_pretrained(...).save_pretrained(folder) of transformers"
            ) from error

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
    if folder is None:
        raise _missing(checkpoint)
    path, listed = folder / TOKENIZER, folder / VOCABULARY
    try:
        if path.exists():
            found = Tokens(Tokenizer.from_buffer(_content(path)), longest)
        elif listed.exists():
            read_file(listed, MAX_TOKENIZER_BYTES)
            found = Tokens(_word_pieces(folder, listed), longest)
        else:
            raise _missing(checkpoint)
    except CheckpointError:
        raise
    except BaseException as error:  # the library raises nothing more special for what is malformed
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise CheckpointError(
            f"{checkpoint.name}: its tokenizer cannot be read: {reason_of(error)}"
        ) from error
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


def _content(path: Path) -> bytes:
    """A tokenizer.json. Raises CheckpointError where its ids alone would take the memory."""
    content = read_file(path, MAX_TOKENIZER_BYTES)
    if found := _LARGE.search(content):
        raise CheckpointError(
            f"{path} has the number {found[1].decode()[:40]}; wanted ids below 10,000,000: "
            "the library keeps a table of all up to the largest"
        )
    return content


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
