"""Kaldi's log-mel filterbank on a stream, as its compute-fbank-feats and torchaudio's
compliance.kaldi.fbank have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.layers.streamed import Prepared, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State

LOWEST_HERTZ = 20.0
PREEMPHASIS = 0.97
# The least energy, which is that of float32 also where more digits are computed.
FLOOR = torch.finfo(torch.float32).eps


class Fbank(Streamed, Prepared):
    """(batch, 1, samples) in [-1, 1] -> natural logarithms of energies, (batch, bands, frames).

    Frames of 25 ms every 10 ms, of samples as 16-bit integers count them. Each is freed of its
    mean, pre-emphasised within itself, weighed by Povey's window and padded to a power of two;
    triangles that are even in mel add up its power. No noise is added. Frame k starts at sample k *
    hop; a tail that fills no frame is dropped, as Kaldi does with snip_edges.

    State: the samples that later frames still need, (batch, 1, 240) at 16 kHz.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, rate: int, bands: int) -> None:
        super().__init__()
        self.rate, self.bands = rate, bands
        self.length, self.hop = rate // 40, rate // 100
        self.n_fft = 1 << (self.length - 1).bit_length()
        # Made in float64, so that casting down is their only rounding.
        hann = torch.hann_window(self.length, periodic=False, dtype=torch.float64)
        self.register_buffer("window", hann.pow(0.85) * 32768, persistent=False)
        self.register_buffer("filters", filterbank(rate, self.n_fft, bands), persistent=False)

    @property
    def steps(self) -> Steps:
        return Steps(self.length, self.hop)

    def reach(self, first: int, last: int) -> Span:
        return first * self.hop, last * self.hop + self.length - 1

    def prepare(self) -> None:
        """Keeps to float32 at least: 16 bits spoil the logarithm."""
        if self.window.dtype in (torch.float16, torch.bfloat16):
            exact = Fbank(self.rate, self.bands).to(self.window.device, torch.float32)
            self.window, self.filters = exact.window, exact.filters

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        samples = torch.cat((state, x), dim=-1) if isinstance(state, Tensor) else x
        frames = max(0, (samples.shape[-1] - self.length) // self.hop + 1)
        rest = samples[..., frames * self.hop :].contiguous()
        assert end or (frames and rest.shape[-1] == self.length - self.hop)
        if not frames:
            return x.new_zeros(x.shape[0], self.bands, 0), rest
        cut = samples[:, 0].to(self.window.dtype).unfold(-1, self.length, self.hop)[:, :frames]
        cut = cut - cut.mean(dim=-1, keepdim=True)
        # The sample before a frame's first is taken to be like it.
        before = torch.cat((cut[..., :1], cut[..., :-1]), dim=-1)
        cut = (cut - PREEMPHASIS * before) * self.window
        power = torch.fft.rfft(F.pad(cut, (0, self.n_fft - self.length))).abs().square()
        energies = self.filters @ power.transpose(1, 2)
        return energies.clamp_min(FLOOR).log(), rest


def filterbank(rate: int, n_fft: int, bands: int) -> Tensor:
    """Triangles between points that are even in mel, and straight in it: (bands, bins), float64."""

    def mel(hertz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hertz / 700)

    low, high = mel(torch.tensor([LOWEST_HERTZ, rate / 2], dtype=torch.float64))
    edges = torch.linspace(0, 1, bands + 2, dtype=torch.float64)[:, None] * (high - low) + low
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    at = mel(torch.arange(n_fft // 2 + 1, dtype=torch.float64) * (rate / n_fft))
    filters = torch.minimum((at - left) / (centre - left), (right - at) / (right - centre))
    filters[:, -1] = 0  # half the rate itself belongs to no band
    return filters.clamp_min(0)
