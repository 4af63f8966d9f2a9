"""What models of text share: each text becomes one vector, by itself and at once.

A text is an item of the stream. `signal` makes tokens of texts: (batch, 1, texts, longest) int64,
each id one up, so that 0 stands where a text has no more. The network sees as many as the longest
text of its batch has, and texts of about one length together.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.errors import InputError
from streamenc.layers.streamed import Span
from streamenc.models.model import Model
from streamenc.models.signal import Signal, as_signal, is_signal
from streamenc.models.text.sentence import Sentence
from streamenc.models.text.tokens import MAX_TEXT_BYTES, Tokens
from streamenc.spec import Port, Steps, StreamSpec
from streamenc.state import State

# Texts that go through the network at once.
BATCH = 32


class TextEncoder(Model):
    """Texts -> vectors (batch, channels, texts); a subclass computes `states`, and `pooled` where
    it has a pooler.

    State: how many texts went by, (batch,) int64.
    """

    uncapturable = "texts have any length, and a CUDA graph would compute the longest of all"

    def __init__(
        self, name: str, width: int, words: int, sentence: Sentence, tokens: Tokens
    ) -> None:
        """words  How many ids there are."""
        super().__init__()
        self.count = words
        self.sentence = sentence
        self.tokenizer = tokens.digest
        self._tokens = tokens
        self.spec = text_spec(name, width, self.steps)

    @property
    def steps(self) -> Steps:
        return Steps()

    def reach(self, first: int, last: int) -> Span:
        return first, last

    def states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(texts, tokens) ids, and which of them are there -> states (texts, tokens, width)."""
        raise NotImplementedError

    def pooled(self, first: Tensor) -> Tensor:
        """What the pooler makes of the first tokens' states, (texts, width)."""
        raise NotImplementedError

    def signal(self, x: Any) -> Signal:
        """Tokens of a text; of a list or an array of texts; or of a batch of those."""
        if is_signal(x):
            return x
        if isinstance(x, np.ndarray) and x.dtype.kind not in "UOT":
            return as_signal(x)
        lanes = _lanes(x)
        return torch.stack([self._tokenised(lane) for lane in lanes])[:, None]

    def overlong(self, x: Any) -> int:
        """How many of the texts have more tokens than the model takes: these are cut."""
        texts = [self.sentence.prefix + text for lane in _lanes(x) for text in lane]
        return self._tokens.overlong(texts) if texts else 0

    def _tokenised(self, texts: Sequence[str]) -> Tensor:
        for text in texts:
            # A character has four bytes at most.
            if len(text) > MAX_TEXT_BYTES // 4 and len(text.encode()) > MAX_TEXT_BYTES:
                raise InputError(
                    f"got a text of {len(text)} characters; one has at most {MAX_TEXT_BYTES} "
                    "bytes: cut it into segments"
                )
        prefixed = [self.sentence.prefix + text for text in texts]
        made = torch.zeros(len(texts), self.sentence.longest, dtype=torch.int64)
        for row, ids in zip(made, self._tokens.ids(prefixed), strict=True):
            row[: len(ids)] = torch.tensor(ids) + 1
        return made

    def before(self, x: Signal) -> Tensor:
        x = super().before(x)
        longest, name = self.sentence.longest, self.spec.name
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[3] != longest or x.is_floating_point():
            raise InputError(
                f"got {x.dtype} of shape {tuple(x.shape)}; {name} wants texts, or what its "
                f"`signal` makes of them: int64 (batch, 1, texts, {longest})"
            )
        if x.numel() and (int(x.min()) < 0 or int(x.max()) > self.count):
            raise InputError(
                f"got tokens {int(x.min())}..{int(x.max())}; {name} has {self.count} words, each "
                "one up, and 0 for none: are these tokens of another model?"
            )
        return x

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, time = x.shape[0], x.shape[2]
        if not time:
            return x.new_zeros(batch, self.spec.output.channels, 0, dtype=self.like.dtype), state
        vectors = self._vectors(x.transpose(1, 2).reshape(batch * time, -1).long())
        seen = torch.full((batch,), time, device=x.device)
        if isinstance(state, Tensor):
            seen += state
        return vectors.view(batch, time, -1).transpose(1, 2).contiguous(), seen

    def _vectors(self, tokens: Tensor) -> Tensor:
        """(texts, longest) -> (texts, width)."""
        lengths = (tokens > 0).sum(dim=1)
        made: list[Tensor] = []
        order = lengths.argsort(stable=True)
        for some in torch.split(order, BATCH):
            # An idle lane has no tokens; it gets one, so that its states are numbers.
            longest = max(1, int(lengths[some].max()))
            ids, mask = tokens[some, :longest], tokens[some, :longest] > 0
            mask[:, 0] = True
            made.append(self._pool(self.states((ids - 1).clamp(min=0), mask), mask))
        vectors = torch.cat(made)
        if self.sentence.normalised:
            vectors = F.normalize(vectors, dim=1)
        return torch.empty_like(vectors).index_copy_(0, order, vectors)

    def _pool(self, states: Tensor, mask: Tensor) -> Tensor:
        pooling = self.sentence.pooling
        if pooling == "cls":
            return states[:, 0]
        if pooling == "pooler":
            return self.pooled(states[:, 0])
        there = mask[..., None]
        if pooling == "max":
            return states.masked_fill(~there, -torch.inf).amax(dim=1)
        return (states * there).sum(dim=1) / there.sum(dim=1)


def text_spec(name: str, width: int, steps: Steps) -> StreamSpec:
    """What a model promises that makes a vector of `width` of each text."""
    once = Fraction(1)
    return StreamSpec(
        name=name,
        input=Port("text", once, 1, "str", axes=1),
        output=Port("features", once, width),
        steps=steps,
        equality="offline",
        receptive_field=1,
    )


def _lanes(x: Any) -> list[list[str]]:
    """A batch of lists of texts. Raises InputError."""
    if isinstance(x, np.ndarray):
        x = x[0] if x.ndim == 2 and len(x) == 1 else x[:, 0] if x.ndim == 3 else x
        x = x.tolist()
    if isinstance(x, str):
        return [[x]]
    lanes: list[Any] = list(x) if isinstance(x, list | tuple) else [None]
    if all(isinstance(text, str) for text in lanes):
        lanes = [lanes]
    if not all(isinstance(lane, list | tuple) for lane in lanes) or not all(
        isinstance(text, str) for lane in lanes for text in lane
    ):
        raise InputError(f"got a {type(x).__name__}; wanted a text, or a list of texts")
    if len({len(lane) for lane in lanes}) > 1:
        raise InputError(f"got lists of {[len(lane) for lane in lanes]} texts; wanted as many each")
    return [list(lane) for lane in lanes]
