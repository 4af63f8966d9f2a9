"""What models of images share: each image is encoded or decoded alone, or with its window.

One image in, one item out, at once (or a window of them): nothing is held back, nothing is
remembered but how many images went by. Several images in a step, and those of several streams, run
as one batch. `rate`, images a second, is for times alone.

The size of the images and how others are brought to it is said by `Port.image` and done before
the model, which refuses images of another size; it shifts and scales their values itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from streamenc import options
from streamenc.checkpoints.checkpoint import Checkpoint
from streamenc.errors import CheckpointError, InputError, UsageError
from streamenc.layers.streamed import Span
from streamenc.models.model import Model
from streamenc.models.signal import Signal
from streamenc.spec import ImageSize, Port, Steps, StreamSpec
from streamenc.state import State

RATE = 25
UNCHANGED = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# PIL's numbers, as preprocessor_config.json has them; its box filter is the area's mean.
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "area"}
# Of a preparation: pixels of a side, means and deviations of colours, and of these the smallest.
MAX_EDGE, MAX_COLOUR, LEAST_SPREAD = 1 << 14, 1e6, 1e-6
# Up to here ConvNeXT's preparation, which ResNet has too, cuts the centre out.
_CROPPED_BELOW = 384


class ImageModel(Model):
    """One side of such a model; a subclass computes `images`.

    window  How many images are seen together, by one call of `images` on multiples of so many.

    State: how many images went by, (batch,) int64.
    """

    uncapturable = "images have any size, and a CUDA graph would hold memory for each"

    def __init__(
        self,
        name: str,
        ports: tuple[Port, Port],
        entries: int = 0,
        *,
        window: int = 1,
        note: str = "",
    ) -> None:
        super().__init__()
        self.window = window
        self.spec = StreamSpec(
            name=name,
            input=ports[0],
            output=ports[1],
            steps=self.steps,
            equality="offline" if window == 1 else "segment",
            codebook_size=entries,
            receptive_field=self.receptive_field(),
            note=note,
        )

    @property
    def steps(self) -> Steps:
        return Steps(*(self.window,) * 4)

    def reach(self, first: int, last: int) -> Span:
        window = self.window
        return first // window * window, last // window * window + window - 1

    def images(self, x: Tensor) -> Tensor:
        """(images, channels, height, width) -> (images, channels, and the axes of `grid`).

        Where they are seen together, these are whole windows, one after the other."""
        raise NotImplementedError

    def grid(self, height: int, width: int) -> tuple[int, ...]:
        """The axes of an output that stand behind its channels, for an input of that size."""
        raise NotImplementedError

    def step(self, x: Tensor, state: State, *, end: bool = False) -> tuple[Tensor, State]:
        batch, time = x.shape[0], x.shape[2]
        if not time:
            return x.new_zeros(self.output_shape(x.shape)), state
        y = self.images(x.transpose(1, 2).flatten(0, 1))
        seen = torch.full((batch,), time, device=x.device)
        if isinstance(state, Tensor):
            seen += state
        return y.reshape(batch, time, *y.shape[1:]).transpose(1, 2).contiguous(), seen

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        height, width = shape[3:] or (0, 0)
        return (shape[0], self.width, 0, *self.grid(height, width))

    @property
    def width(self) -> int:
        """Channels of what `images` gives."""
        return self.spec.output.channels

    def before(self, x: Signal) -> Tensor:
        x = super().before(x)
        port = self.spec.input
        if x.ndim != 5 or x.shape[1] != port.channels:
            raise InputError(
                f"got shape {tuple(x.shape)}; {self.spec.name} wants (batch, {port.channels}, "
                "time, height, width)"
            )
        self._check_size(*x.shape[3:])
        return x

    def _check_size(self, height: int, width: int) -> None:
        image = self.spec.input.image or ImageSize()
        unit = image.unit
        if image.size is not None and (height, width) != image.size:
            raise InputError(
                f"got images of {width}x{height} pixels (WIDTHxHEIGHT); this model was loaded "
                f"for {image.size[1]}x{image.size[0]}: scale them to that, or load it with "
                "another `size`"
            )
        if not height or not width or height % unit or width % unit:
            near = image.nearest((height, width))
            raise InputError(
                f"got images of {width}x{height} pixels (WIDTHxHEIGHT); this model takes "
                f"multiples of {unit}: crop or scale them to {near[1]}x{near[0]}"
            )

    def after(self, y: Tensor, codebooks: int | None = None) -> Signal:
        if codebooks is not None:
            self.check_codebooks(codebooks)
        return y


def video(rate: Fraction, image: ImageSize | None = None) -> Port:
    """Images of three colours, in [-1, 1]."""
    return Port("video", rate, 3, axes=2, image=image)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What the published preparation does to an image: its size, then (value - mean) / std.

    mean, std  Of each colour, of values in [0, 1].
    """

    image: ImageSize
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Standardised(torch.nn.Module):
    """From values in [-1, 1] to those of a preparation."""

    mean: Tensor
    std: Tensor

    def __init__(self, preparation: Preparation) -> None:
        super().__init__()
        self.preparation = preparation
        for name in ("mean", "std"):
            values = torch.tensor(getattr(preparation, name), dtype=torch.float64, device="cpu")
            # On the CPU even where the weights to come are on no device yet.
            self.register_buffer(name, values.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2 - self.mean.to(x.dtype)) / self.std.to(x.dtype)


def published_preparation(checkpoint: Checkpoint, default: Preparation) -> Preparation:
    """What the checkpoint says of it, or `default` where there is none.

    Raises CheckpointError where it asks for something else than sizes, mean and std.
    """
    said = checkpoint.preprocessor
    if not said:
        return default
    mean, std = default.mean, default.std
    if not said.get("do_normalize", True):
        mean, std = UNCHANGED
    else:
        mean = _colours(checkpoint, "image_mean", said.get("image_mean", mean))
        std = _colours(checkpoint, "image_std", said.get("image_std", std))
    factor = said.get("rescale_factor", 1 / 255)
    if not said.get("do_rescale", True) or not isinstance(factor, float):
        factor = 0.0
    if abs(255 * factor - 1) > 1e-3 or min(map(abs, std)) < LEAST_SPREAD:
        raise CheckpointError(
            f"{checkpoint.name}: its preparation has rescale_factor {factor} and std "
            f"{std}; wanted 1/255, and no std below {LEAST_SPREAD:g}"
        )
    resample = said.get("resample", -1)
    filter_ = _FILTERS.get(resample, "") if type(resample) is int else ""
    if not filter_ and "resample" in said:
        raise CheckpointError(
            f"{checkpoint.name}: its preparation has resample {said['resample']!r}; "
            f"wanted one of {', '.join(f'{n} ({f})' for n, f in _FILTERS.items())}"
        )
    size, shortest = _sizes(checkpoint, default.image)
    image = replace(
        default.image, size=size, shortest=shortest, filter=filter_ or default.image.filter
    )
    return Preparation(image, mean, std)


def _colours(checkpoint: Checkpoint, key: str, values: Any) -> tuple[float, ...]:
    values = [values] * 3 if type(values) in (int, float) else values
    if (
        not isinstance(values, list | tuple)
        or len(values) != 3
        or not all(type(value) in (int, float) and abs(value) <= MAX_COLOUR for value in values)
    ):
        raise CheckpointError(
            f"{checkpoint.name}: its preparation has {key} {values!r:.80}; wanted three numbers"
        )
    return tuple(map(float, values))


def _sizes(checkpoint: Checkpoint, default: ImageSize) -> tuple[tuple[int, int] | None, int]:
    """The size that comes out, and what the shorter side is scaled to before a cut; 0 for none."""
    said = checkpoint.preprocessor
    size, crop = said.get("size"), said.get("crop_size")
    cut = said.get("do_center_crop", crop is not None)
    if size is None:
        return default.size, default.shortest
    whole = _pair(size)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if type(shortest) is int and not 1 <= shortest <= MAX_EDGE:
        shortest = None
    if "crop_pct" in said:
        edge = whole[0] if whole else shortest
        if type(edge) is int and edge >= _CROPPED_BELOW:
            return (edge, edge), 0
        part = said["crop_pct"]
        if type(edge) is int and type(part) in (int, float) and 0.1 <= part <= 1:
            return (edge, edge), int(edge / part)
    elif type(shortest) is int and not cut:
        return None, 0
    elif cut and (window := _pair(crop)) and (whole or type(shortest) is int):
        return window, shortest or (whole[0] if whole else 0)
    elif whole:
        return whole, 0
    raise CheckpointError(
        f"{checkpoint.name}: its preparation has size {size!r:.80} and crop_size {crop!r:.80}; "
        f"wanted a height and a width up to {MAX_EDGE}, or a shortest edge, and what is cut out"
    )


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    elif type(size) is int:
        size = (size, size)
    if isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int for n in size):
        return (size[0], size[1]) if 1 <= min(size) and max(size) <= MAX_EDGE else None
    return None


def chosen_size(preparation: Preparation, size: Any) -> Preparation:
    """With another size than the published one, as a user asks for it.

    size  None for the published one; "any" for all multiples of the unit; 448, "448", "700x392"
          (WIDTHxHEIGHT), or a pair (height, width). A square one keeps the published proportion
          of what is cut away; others are scaled to at once.

    Raises UsageError for what is no such size.
    """
    published = preparation.image
    if size == "any":
        return replace(preparation, image=replace(published, size=None, shortest=0))
    wanted = published.size
    if size is not None:
        square = isinstance(size, int) or (isinstance(size, str) and size.isdecimal())
        wanted = options.size("size", f"{size}x{size}" if square else size)
    if wanted is not None and (wanted[0] % published.unit or wanted[1] % published.unit):
        near = published.nearest(wanted)
        raise UsageError(
            f"size is {wanted[1]}x{wanted[0]}; this model takes multiples of {published.unit}: "
            f"{near[1]}x{near[0]}, say"
        )
    if wanted == published.size:
        return preparation
    shortest = 0
    if wanted and published.size and published.shortest and wanted[0] == wanted[1]:
        shortest = round(published.shortest * wanted[0] / min(published.size))
    return replace(preparation, image=replace(published, size=wanted, shortest=shortest))
