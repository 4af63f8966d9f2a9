"""Residual vector quantisation while it is being trained: codebooks follow by moving averages."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# An entry that gets fewer vectors than this per step, on average, is put where some are.
DEAD = 0.03


class TrainableRVQ(nn.Module):
    """Codebooks as moving averages of the vectors that they stand for.

    codebooks  (levels, entries, dim), what a trained model keeps.
    """

    def __init__(self, levels: int, entries: int, dim: int, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("codebooks", torch.zeros(levels, entries, dim))
        self.register_buffer("sums", torch.zeros(levels, entries, dim))
        self.register_buffer("counts", torch.zeros(levels, entries))
        self.register_buffer("started", torch.tensor(False))

    def forward(self, z: Tensor, levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Quantises each item of a batch with the first `levels` codebooks.

        z       (batch, dim, frames) float32.
        levels  (batch,) int64: quantizer dropout.
        Returns the quantised vectors, through which the gradient passes as if they were `z`; the
        commitment loss, a scalar; and the codes, (batch * frames, most of `levels`), -1 where an
        item does not use the level.
        """
        batch, dim, frames = z.shape
        rows = z.transpose(1, 2).reshape(batch * frames, dim)
        depth = levels.repeat_interleave(frames)
        residual, total, codes = rows.detach(), torch.zeros_like(rows), []
        commitment = rows.new_zeros(())
        for level, book in enumerate(self.codebooks):
            used = depth > level
            if not bool(used.any()):
                break
            if self.training and not self.started:
                self._start(level, residual)
            nearest = (0.5 * book.square().sum(-1) - residual @ book.T).argmin(-1)
            codes.append(torch.where(used, nearest, -1))
            chosen = book[nearest]
            if self.training:
                self._follow(level, residual[used], nearest[used])
            total = torch.where(used[:, None], total + chosen, total)
            error = (rows - total).square().sum(-1)
            commitment = commitment + torch.where(used, error, 0).mean()
            residual = residual - chosen
        if self.training:
            self.started.fill_(True)
        passed = rows + (total - rows).detach()
        quantised = passed.view(batch, frames, dim).transpose(1, 2)
        return quantised, commitment / (len(self.codebooks) * dim), torch.stack(codes, -1)

    @torch.no_grad()
    def start_from(self, codebooks: Tensor) -> None:
        """Goes on from trained codebooks, (levels, entries, dim)."""
        self.codebooks.copy_(codebooks)
        self.sums.copy_(codebooks)
        self.counts.fill_(1)
        self.started.fill_(True)

    @torch.no_grad()
    def _start(self, level: int, rows: Tensor) -> None:
        """Entries begin as vectors of the first batch."""
        pick = torch.randint(len(rows), (self.codebooks.shape[1],))
        self.codebooks[level] = rows[pick]
        self.sums[level] = rows[pick]
        self.counts[level] = 1

    @torch.no_grad()
    def _follow(self, level: int, rows: Tensor, nearest: Tensor) -> None:
        if not rows.isfinite().all():
            return  # averages would never recover from it
        entries = self.codebooks.shape[1]
        counts = torch.bincount(nearest, minlength=entries).to(rows.dtype)
        sums = torch.zeros_like(self.sums[level]).index_add_(0, nearest, rows)
        self.counts[level].lerp_(counts, 1 - self.decay)
        self.sums[level].lerp_(sums, 1 - self.decay)
        dead = self.counts[level] < DEAD
        if dead.any() and len(rows):
            fresh = rows[torch.randint(len(rows), (int(dead.sum()),))]
            self.sums[level][dead] = fresh
            self.counts[level][dead] = 1
        self.codebooks[level] = self.sums[level] / self.counts[level][:, None]
