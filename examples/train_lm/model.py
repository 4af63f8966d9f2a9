"""A small causal transformer over tokens, in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention to what came before, and a layer for each token alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.alone = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        batch, tokens, width = x.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in self.mix(self.first(x)).chunk(3, dim=-1)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        made: Tensor = x + self.alone(self.second(x))
        return made


class LanguageModel(nn.Module):
    """Tokens -> what may come next.

    entries  How many tokens there are.
    context  How many of them it sees at most.
    """

    def __init__(
        self, entries: int, context: int, width: int = 96, heads: int = 4, blocks: int = 2
    ) -> None:
        super().__init__()
        self.entries, self.context = entries, context
        self.tokens = nn.Embedding(entries, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens) -> (batch, tokens, entries): logits of the one behind each."""
        places = self.places(torch.arange(tokens.shape[1], device=tokens.device))
        x = self.blocks(self.tokens(tokens) + places)
        return F.linear(self.norm(x), self.tokens.weight)

    @torch.inference_mode()
    def go_on(
        self, tokens: Tensor, count: int, codebooks: int, temperature: float, rng: torch.Generator
    ) -> Tensor:
        """(tokens,) of whole frames, and `count` more, each of the codebook that is due."""
        size = self.entries // codebooks
        for number in range(len(tokens), len(tokens) + count):
            # What it sees begins with a frame, as in training.
            keep = self.context - codebooks + number % codebooks
            logits = self(tokens[None, -min(number, keep) :])[0, -1]
            due = number % codebooks
            of_book = logits[due * size : (due + 1) * size] / temperature
            drawn = torch.multinomial(of_book.softmax(-1), 1, generator=rng)
            tokens = torch.cat((tokens, drawn + due * size))
        return tokens
