"""StreamSpec: what an encoder or decoder promises about its stream, before any weight is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from streamenc.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Equality = Literal["offline", "segment", "window"]


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Which images a model takes, and how the published preparation brings others to that.

    Attributes:
        unit: Height and width are multiples of it.
        size: (height, width), where the model takes no other; None for any.
        shortest: The published preparation scales the shorter side to this and cuts the centre out
            to `size`; 0 where it scales to `size` at once, whatever the proportions.
        filter: How it scales: "nearest", "bilinear", "bicubic", "lanczos" or "area".
    """

    unit: int = 1
    size: tuple[int, int] | None = None
    shortest: int = 0
    filter: str = "bicubic"

    def nearest(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) in multiples of the unit that is nearest to another."""
        height, width = (max(1, round(side / self.unit)) * self.unit for side in size)
        return height, width


@dataclass(frozen=True, slots=True)
class Port:
    """One side of a model.

    Attributes:
        kind: "audio", "codes" or "features", as in StreamInfo; or "video", or "text".
        rate: Items per second along time: samples, or frames. Of texts, which come when they come,
            a nominal 1.
        channels: Audio channels, colours, codebooks (the most there are) or feature bins.
        dtype: numpy's name of the type on the stream side: "float32", "uint16".
        axes: Axes behind time, which is always axis 2: 0 for (batch, channels, time), 2 for images
            and grids, (batch, channels, time, height, width); 1 for texts, the tokens of each.
        image: What sizes of images the model takes; None where it takes none.
    """

    kind: Literal["audio", "codes", "features", "video", "text"]
    rate: Fraction
    channels: int
    dtype: str = "float32"
    axes: int = 0
    image: ImageSize | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """How a layer, or a whole model, goes through a stream step by step.

    The first step takes `lead` items, or more by a multiple of `hop`, and gives `lead_out`, and
    more by the same multiple of `hop_out`; each later step takes a multiple of `hop` and gives the
    same multiple of `hop_out`. The default is that of what looks at each item alone.

    Layers state their own; those of what is built of them follow by `then` and `beside`. The idea
    of layers that carry such properties is that of google/sequence-layers.
    """

    lead: int = 1
    hop: int = 1
    lead_out: int = 1
    hop_out: int = 1

    def then(self, following: Steps) -> Steps:
        """This, and `following` on what it gives. Raises ValueError where no length fits both."""
        period = following.hop // math.gcd(self.hop_out, following.hop)
        least = max(0, -(-(following.lead - self.lead_out) // self.hop_out))
        for hops in range(least, least + period):
            given = self.lead_out + hops * self.hop_out
            if not (given - following.lead) % following.hop:
                return Steps(
                    lead=self.lead + hops * self.hop,
                    hop=period * self.hop,
                    lead_out=following.outputs(given),
                    hop_out=period * self.hop_out // following.hop * following.hop_out,
                )
        raise ValueError(f"{following} cannot follow {self}: no first step fits both")

    def beside(self, other: Steps) -> Steps:
        """Both on the same input, whose outputs are added; those of the one that gives more in its
        first step wait for the other's. Raises ValueError where these would have different lengths,
        or where no length of input fits both."""
        taken = [Steps(steps.lead, steps.hop, steps.lead, steps.hop) for steps in (self, other)]
        both = taken[0].then(taken[1])
        ours, theirs = (
            Steps(
                both.lead,
                both.hop,
                steps.outputs(both.lead),
                both.hop // steps.hop * steps.hop_out,
            )
            for steps in (self, other)
        )
        if ours.hop_out != theirs.hop_out:
            raise ValueError(f"{self} and {other} stand side by side, but give {ours} and {theirs}")
        return min(ours, theirs, key=lambda steps: steps.lead_out)

    def outputs(self, items: int) -> int:
        """What comes of a first step of so many items. Raises ValueError where it takes others."""
        if items < self.lead or (items - self.lead) % self.hop:
            raise ValueError(
                f"a first step of {items} items; wanted {self.lead}, or a multiple of {self.hop} "
                "more"
            )
        return self.lead_out + (items - self.lead) // self.hop * self.hop_out

    def inputs(self, items: int) -> int:
        """The shortest first step that gives at least so many items."""
        missing = max(0, items - self.lead_out)
        return self.lead + -(-missing // self.hop_out) * self.hop


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """How a model steps through a stream, and how exact that is.

    The last step of a stream (`end=True`) takes any length and treats the tail as the published
    model does. Mimi: 1920 samples -> 1 frame each time. EnCodec 24 kHz, exact: 2240 samples -> 7
    frames once, then 320 -> 1.

    Attributes:
        name: The model family: "mimi", "encodec", "mel".
        steps: How many items the first step and the later ones take and give.
        equality: "offline": the stream's output equals the published model run once over the whole
            input. "segment": the same per segment that the model itself defines. "window": it
            equals the same documented windows run offline.
        codebook_size: Entries per codebook; 0 where there are none.
        limit: Input items that a stream may have at most; 0 for any number.
        receptive_field: Input items from the first to the last that one output item depends on, at
            most and away from the stream's start; None where all the past counts.
        scaled: Each step's output comes with a scale for the decoded waveform (EnCodec 48 kHz).
        note: One sentence on what the equality excludes, for the table of models.
    """

    name: str
    input: Port
    output: Port
    steps: Steps
    equality: Equality
    codebook_size: int = 0
    limit: int = 0
    receptive_field: int | None = None
    scaled: bool = False
    note: str = ""

    @property
    def lead(self) -> int:
        """Input items of the first step."""
        return self.steps.lead

    @property
    def hop(self) -> int:
        """Input items that a later step takes, or any multiple of them."""
        return self.steps.hop

    @property
    def lead_out(self) -> int:
        """Output items of the first step."""
        return self.steps.lead_out

    @property
    def hop_out(self) -> int:
        """Output items for each hop."""
        return self.steps.hop_out

    @property
    def delay(self) -> int:
        """Algorithmic delay in input items: by how much what is held back unencoded can exceed one
        hop. That is most before the first step: 0 for Mimi, 1920 samples for exact EnCodec."""
        return max(0, self.lead - self.hop)

    @property
    def latency_seconds(self) -> float:
        """The longest time from an item's arrival to the step that takes it in: hop and delay.

        An image or a text is there at once; a sample of sound lasts until the next one.
        """
        waiting = self.hop + self.delay - (1 if self.input.kind in ("video", "text") else 0)
        return float(waiting / self.input.rate)

    def first_input(self, item: int) -> Fraction:
        """Index of the input item with which an output item begins, or a fraction of one."""
        if item < self.lead_out:
            return Fraction(item * self.lead, self.lead_out)
        return self.lead + Fraction((item - self.lead_out) * self.hop, self.hop_out)

    def kbps(self, codebooks: int) -> float:
        """kbit/s of so many of an encoder's codebooks, as they are: without entropy coding."""
        return codebooks * math.log2(self.codebook_size) * float(self.output.rate) / 1000

    def check_codebooks(self, codebooks: int, least: int = 1) -> int:
        """Raises InputError where the model has no such number of codebooks."""
        if not self.codebook_size:
            raise InputError(f"{self.name} has no codebooks; {codebooks} were asked for")
        if not isinstance(codebooks, int):
            raise InputError(f"a number of codebooks is a whole number; got {codebooks!r}")
        port = self.output if self.output.kind == "codes" else self.input
        if not least <= codebooks <= port.channels:
            raise InputError(
                f"{self.name} has {least} to {port.channels} codebooks; {codebooks} were asked for"
            )
        return codebooks


class ScaledCodes(NamedTuple):
    """Codes with the factor that their decoded waveform is multiplied by, as sessions give them.

    Attributes:
        codes: (1, codebooks, frames), of the type that `Port.dtype` says.
        scale: (1, 1, frames) float32: the same for all frames of a segment.
    """

    codes: NDArray[Any]
    scale: NDArray[Any]
