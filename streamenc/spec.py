"""StreamSpec: what an encoder or decoder promises about its stream, before any weight is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Equality = Literal["offline", "segment", "window"]


@dataclass(frozen=True, slots=True)
class ImageSize:
    """Which images a model takes, and how the published preparation brings others to that.

    unit      Height and width are multiples of it.
    size      (height, width), where the model takes no other; None for any.
    shortest  The published preparation scales the shorter side to this and cuts the centre out to
              `size`; 0 where it scales to `size` at once, whatever the proportions.
    filter    How it scales: "nearest", "bilinear", "bicubic", "lanczos" or "area".
    """

    unit: int = 1
    size: tuple[int, int] | None = None
    shortest: int = 0
    filter: str = "bicubic"


@dataclass(frozen=True, slots=True)
class Port:
    """One side of a model.

    kind      "audio", "codes" or "features", as in StreamInfo; or "video".
    rate      Items per second along time: samples, or frames.
    channels  Audio channels, colours, codebooks (the most there are) or feature bins.
    dtype     numpy's name of the type on the stream side: "float32", "uint16".
    axes      Axes behind time, which is always axis 2: 0 for (batch, channels, time), 2 for images
              and grids, (batch, channels, time, height, width).
    image   What sizes of images the model takes; None where it takes none.
    """

    kind: Literal["audio", "codes", "features", "video"]
    rate: Fraction
    channels: int
    dtype: str = "float32"
    axes: int = 0
    image: ImageSize | None = None


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """How a model steps through a stream, and how exact that is.

    The first step takes `lead` input items and gives `lead_out` output items; each later step takes
    a multiple of `hop` and gives the same multiple of `hop_out`. The last step (`end=True`) takes
    any length and treats the tail as the published model does. Mimi: 1920 samples -> 1 frame each
    time. EnCodec 24 kHz, exact: 2240 samples -> 7 frames once, then 320 -> 1.

    name      The model family: "mimi", "encodec", "mel".
    delay     Algorithmic delay in input items: by how much the newest input that is held back
              unencoded after a step can exceed one hop (0 for Mimi, 1920 samples for exact EnCodec
              at its start).
    equality  "offline": the stream's output equals the published model run once over the whole
              input. "segment": the same per segment that the model itself defines.
              "window": it equals the same documented windows run offline.
    codebook_size  Entries per codebook; 0 where there are none.
    limit     Input items that a stream may have at most; 0 for any number.
    scaled    Each step's output comes with a scale for the decoded waveform (EnCodec 48 kHz).
    note      One sentence on what the equality excludes, for the table of models.
    """

    name: str
    input: Port
    output: Port
    lead: int
    hop: int
    lead_out: int
    hop_out: int
    equality: Equality
    delay: int = 0
    codebook_size: int = 0
    limit: int = 0
    scaled: bool = False
    note: str = ""

    @property
    def latency_seconds(self) -> float:
        """The longest time from an item's arrival to the step that takes it in: hop and delay.

        An image is there at once; a sample of sound lasts until the next one.
        """
        waiting = self.hop + self.delay - (1 if self.input.kind == "video" else 0)
        return float(waiting / self.input.rate)

    def kbps(self, codebooks: int) -> float:
        """kbit/s of so many of an encoder's codebooks, as they are: without entropy coding."""
        return codebooks * math.log2(self.codebook_size) * float(self.output.rate) / 1000
