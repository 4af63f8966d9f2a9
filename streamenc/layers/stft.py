"""STFT: the short-time Fourier transform of a stream, on the very grid that it has offline."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from streamenc.layers.streamed import Exportable, Span, Streamed
from streamenc.spec import Steps
from streamenc.state import State


class STFT(Streamed, Exportable):
    """The one-sided complex spectrum of each frame, equal to `torch.stft` over the whole signal.

    (batch, 1, samples) -> (batch, n_fft // 2 + 1, frames), complex.

    Centred, frame k lies around sample k * hop and both ends of the signal are reflected; a signal
    of N samples has 1 + N // hop frames (1 + (N - 1) // hop for an odd n_fft). Not centred, frame k
    starts at sample k * hop, nothing is padded, and a tail that fills no frame is dropped.

    A frame comes out as soon as all samples under its window are there, so a window shorter than
    n_fft, which `torch.stft` surrounds with zeros, also shortens the wait. Signals shorter than the
    reflection, which `torch.stft` refuses, are reflected at both ends as often as needed, as
    `numpy.pad` does it.

    State: the samples that later frames still need and the one before them, which the reflection of
    the end may reach, (batch, 1, lead + before + 1 - lead_out * hop).

    window     (win_length,) with hop <= win_length <= n_fft.
    pad_mode   "constant" puts zeros around the signal, instead of its reflections.
    drop_last  Leaves the last frame out, as Whisper does: N // hop frames.
    lead, lead_out  The first step takes at least `lead` samples and gives `lead_out` frames; every
               further `hop` samples give one more.
    """

    window: Tensor

    def __init__(
        self,
        window: Tensor,
        n_fft: int,
        hop: int,
        *,
        centred: bool = True,
        drop_last: bool = False,
        pad_mode: Literal["reflect", "constant"] = "reflect",
    ) -> None:
        super().__init__()
        assert 0 < hop <= len(window) <= n_fft
        margin = n_fft - len(window)
        self._zeros = (margin // 2, margin - margin // 2)
        if not centred:
            # No frame comes out before its zeros, too, lie within the signal: it might not exist.
            window, self._zeros = F.pad(window, self._zeros), (0, 0)
        self.register_buffer("window", window)
        self.n_fft, self.hop = n_fft, hop
        self.pad_mode = pad_mode
        self._matrix: Tensor | None = None
        # Frame k reads `before` samples before sample k * hop and `after` from there on; it exists
        # where the signal goes on from there for at least `counted` samples.
        self.before = n_fft // 2 - self._zeros[0] if centred else 0
        self.after = len(window) - self.before
        self.counted = (n_fft % 2 if centred else n_fft) + (hop if drop_last else 0)
        self._ready = max(self.after, self.counted)
        self.lead = self._ready if pad_mode == "constant" else max(self._ready, self.before + 1)
        self.lead_out = 1 + (self.lead - self._ready) // hop

    @property
    def steps(self) -> Steps:
        return Steps(self.lead, self.hop, self.lead_out)

    def reach(self, first: int, last: int) -> Span:
        start, stop = first * self.hop - self.before, last * self.hop + self.after - 1
        # What would lie before the signal is reflected.
        return max(0, start), stop if self.pad_mode == "constant" else max(stop, -start)

    def for_export(self) -> None:
        """ONNX runtimes have no fast transform: a product with a matrix, which is more precise than
        their slow one."""
        super().for_export()
        samples, bins = torch.arange(self.n_fft), torch.arange(self.n_fft // 2 + 1)
        angles = (2 * math.pi / self.n_fft) * (samples[:, None] * bins % self.n_fft).double()
        matrix = torch.cat((angles.cos(), -angles.sin()), dim=1)
        self._matrix = matrix.to(self.window.device, self.window.dtype)

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        going = isinstance(state, Tensor)
        samples = torch.cat((state, x), dim=-1) if isinstance(state, Tensor) else x
        left, first = (0, 1) if going else (self.before, 0)
        held = left + samples.shape[-1]
        ahead = held - first - self.before
        assert end or (ahead - self.lead) % self.hop == 0, f"{x.shape[-1]} samples in mid-stream"
        frames = max(0, (ahead - (self.counted if end else self._ready)) // self.hop + 1)
        stop = first + (frames - 1) * self.hop + len(self.window)
        right = max(0, stop - held) if frames else 0
        if not samples.shape[-1]:
            frames = 0  # nothing came, nothing to reflect
        elif left or right:
            zeros = self.pad_mode == "constant"
            samples = F.pad(samples, (left, right)) if zeros else reflect(samples, left, right)
        following = None if end else samples[..., first + frames * self.hop - 1 :].clone()
        if not frames:
            dtype = torch.promote_types(x.dtype, torch.complex32)
            return x.new_zeros((len(x), self.n_fft // 2 + 1, 0), dtype=dtype), following
        cut = samples[:, 0, first:stop].unfold(-1, len(self.window), self.hop) * self.window
        if any(self._zeros):
            cut = F.pad(cut, self._zeros)
        if self._matrix is None:
            return torch.fft.rfft(cut).transpose(1, 2), following
        real, imaginary = (cut @ self._matrix).chunk(2, dim=-1)
        return torch.complex(real, imaginary).transpose(1, 2), following


def reflect(x: Tensor, left: int, right: int) -> Tensor:
    """Extends the last axis by reflection around its first and last item, as often as it takes."""
    period = max(1, 2 * (x.shape[-1] - 1))
    at = torch.arange(-left, x.shape[-1] + right, device=x.device) % period
    return x.index_select(-1, torch.minimum(at, period - at))
