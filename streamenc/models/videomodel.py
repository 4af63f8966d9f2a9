"""What models of video share: frames of one size, a first frame alone, then whole hops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.errors import CheckpointError, InputError
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.state import State

# Of latents: their means, and their deviations from this on. Beyond, float32 holds no ratio.
MAX_LEVEL, LEAST_SPREAD = 1e6, 1e-6


class VideoModel(Model):
    """One side of such a model: steps over (batch, channels, time, height, width).

    Its chain has time before channels, as layers over video do. A tail that is no whole hop is
    completed by repeating its last frame.

    Attributes:
        shrinks: Height and width of the input for each place of the output; the other way round
            for a decoder, `grows`.
        holds: What an input has, for messages: "video", "latents", "codes".
    """

    uncapturable = "frames have any size, and a CUDA graph would hold memory for each"
    shrinks: int = 1
    grows: int = 1
    holds: str = "video"

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        if not x.shape[2]:
            return x.new_zeros(self.output_shape(x.shape)), state
        y, state = self.frames(x.transpose(1, 2), state, end=end)
        return y.transpose(1, 2).contiguous(), state

    def frames(self, x: Tensor, state: State, *, end: bool) -> tuple[Tensor, State]:
        """A step over (batch, time, channels, height, width), of 1 frame at least."""
        missing = (self.spec.lead - x.shape[1] if state is None else -x.shape[1]) % self.spec.hop
        assert end or not missing
        return self.chain.step(completed(x, missing), state, end=end)

    def before(self, x: Signal) -> Tensor:
        x = super().before(x)
        port, unit = self.spec.input, self.shrinks
        if x.ndim != 5 or x.shape[1] != port.channels:
            raise InputError(
                f"got shape {tuple(x.shape)}; {self.spec.name} wants {self.holds} (batch, "
                f"{port.channels}, time, height, width)"
            )
        height, width = x.shape[3:]
        if not height or not width or height % unit or width % unit:
            near = [max(1, round(size / unit)) * unit for size in (width, height)]
            raise InputError(
                f"got frames of {width}x{height} pixels (WIDTHxHEIGHT); this model takes "
                f"multiples of {unit}: crop or pad them to {near[0]}x{near[1]}"
            )
        return x

    @property
    def width(self) -> int:
        """Channels of what `step` gives."""
        return self.spec.output.channels

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        sides = (side // self.shrinks * self.grows for side in shape[3:])
        return (shape[0], self.width, 0, *sides)


def completed(x: Tensor, missing: int) -> Tensor:
    """(batch, time, ...) with its last frame so many times more."""
    return torch.cat((x, x[:, -1:].expand(-1, missing, -1, -1, -1)), dim=1) if missing else x


def kernel(name: str, shape: tuple[int, ...]) -> Callable[[Checkpoint], Tensor]:
    """Where a layer's parameter comes from whose published kernel has three dimensions.

    One or two of these have a single tap where ours lacks them; a kernel of five axes in ours has
    its frames before its channels.
    """

    def read(checkpoint: Checkpoint) -> Tensor:
        value = checkpoint.get(name)
        if value.ndim == 5 and len(shape) == 5:
            return value.transpose(1, 2)
        if value.ndim == 5 and len(shape) in (3, 4):
            single = (3, 4) if len(shape) == 3 else (2,)
            if any(value.shape[axis] != 1 for axis in single):
                raise ValueError("its kernel reaches along time and within frames at once")
            value = value.squeeze(single)
        return value

    return read


class Statistics(nn.Module):
    """Of each channel of the latents: to (latent - mean) / std, and back."""

    centre: Tensor
    spread: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        for name, values in (("centre", mean), ("spread", std)):
            # On the CPU even where the weights to come are on no device yet.
            value = torch.tensor(values, dtype=torch.float64, device="cpu").view(-1, 1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def of(cls, checkpoint: Checkpoint, channels: int, mean: Any, std: Any) -> Statistics:
        """Raises CheckpointError where they are no such numbers."""
        for name, values in (("latents_mean", mean), ("latents_std", std)):
            if (
                not isinstance(values, list | tuple)
                or len(values) != channels
                or not all(
                    type(value) in (int, float) and abs(value) <= MAX_LEVEL for value in values
                )
                or (name == "latents_std" and min(values) < LEAST_SPREAD)
            ):
                raise CheckpointError(
                    f"{checkpoint.name}: {name} is {values!r:.80}; normalised latents want "
                    f"{channels} numbers up to {MAX_LEVEL:g}"
                    f"{f', each {LEAST_SPREAD:g} or more' if name == 'latents_std' else ''}"
                )
        return cls(tuple(map(float, mean)), tuple(map(float, std)))

    def there(self, x: Tensor) -> Tensor:
        return (x - self.centre.to(x.dtype)) / self.spread.to(x.dtype)

    def back(self, x: Tensor) -> Tensor:
        return x * self.spread.to(x.dtype) + self.centre.to(x.dtype)
