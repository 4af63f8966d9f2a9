"""An image of what was encoded over time. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from streamenc.cli.look.page import short_name
from streamenc.errors import UsageError
from streamenc.graph.frames import StreamInfo

# Of features, values beyond these are drawn like these.
SHOWN_PERCENT = (1, 99)
# By how many times the usual extent a channel has to lie away from all others to be left out when
# the range is chosen: few loud channels would leave one colour for the rest.
OUTLYING = 5
WIDTH_INCHES, DPI = 12, 120


@dataclass(frozen=True, slots=True)
class Sound:
    """What is drawn above codes: a value at each of these times."""

    seconds: np.ndarray[Any, Any]
    values: np.ndarray[Any, Any]


def plot_stream(
    info: StreamInfo,
    data: np.ndarray[Any, Any],
    *,
    sound: Sound | None = None,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    gaps_seconds: Sequence[float] = (),
    heading: str = "",
) -> Image.Image:
    """Draws codes as a map of entries, or features as an image, over seconds.

    data           (codebooks or channels, frames); what is masked is left blank.
    sound          Drawn above them.
    start_seconds  Where `data` begins.
    seconds        How long it lasts; None for that of as many frames.
    gaps_seconds   Where the stream broke off; marked by lines.
    heading        Stands before the title.

    Raises UsageError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'streamenc[plot]'") from error
    if seconds is None:
        seconds = data.shape[1] / float(info.rate)
    rows = 1 if sound is None else 2
    figure = Figure(figsize=(WIDTH_INCHES, 2.2 + 2.4 * rows), dpi=DPI, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    ratios = [1, 2][2 - rows :]
    axes = figure.subplots(rows, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    if sound is not None:
        axes[0].plot(sound.seconds, sound.values, linewidth=0.4, color="#335c81")
        axes[0].set_ylabel("amplitude")
        axes[0].margins(x=0)
    codes = info.kind == "codes"
    channels, end = data.shape[0], start_seconds + seconds
    low, high = (None, None) if codes else _shown_range(data)
    image = axes[-1].imshow(
        data,
        origin="upper" if codes else "lower",
        aspect="auto",
        interpolation="nearest",
        extent=(start_seconds, end, *((channels - 0.5, -0.5) if codes else (-0.5, channels - 0.5))),
        cmap="turbo" if codes else "magma",
        vmin=low,
        vmax=high,
    )
    for gap in gaps_seconds:
        axes[-1].axvline(gap, color="white" if codes else "tab:cyan", linewidth=1, linestyle=":")
    axes[-1].set_xlim(start_seconds, end)
    axes[-1].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_ylabel("codebook" if codes else "channel")
    axes[-1].set_xlabel("seconds" if info.rate else "segments")
    beyond = "neither" if codes else _beyond(data, low, high)
    label = "entry" if codes else "value"
    figure.colorbar(image, ax=axes[-1], label=label, pad=0.01, extend=beyond)
    of_model = f" of {short_name(info.model)}" if info.model else ""
    rate = f"{float(info.rate):.4g} frames a second" if info.rate else "a segment each"
    figure.suptitle(f"{heading}{info.kind}{of_model}, {rate}")
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _shown_range(data: np.ndarray[Any, Any]) -> tuple[float, float] | tuple[None, None]:
    values = np.ma.compressed(np.ma.masked_invalid(data[_usual(data)]))
    if not len(values):
        return None, None
    low, high = np.percentile(values, SHOWN_PERCENT)
    return float(low), float(high)


def _usual(data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which channels lie where most of them do."""
    filled = np.ma.filled(np.ma.masked_invalid(data).astype(np.float64), np.nan)
    there: np.ndarray[Any, Any] = np.isfinite(filled).any(axis=1)
    if not there.any():
        return there
    low, middle, high = np.nanpercentile(filled[there], (1, 50, 99), axis=1)
    centre, extent = np.median(middle), OUTLYING * np.median(high - low)
    usual: np.ndarray[Any, Any] = np.zeros(len(filled), bool)
    usual[there] = (low >= centre - extent) & (high <= centre + extent)
    return usual if usual.any() else there


def _beyond(data: np.ndarray[Any, Any], low: float | None, high: float | None) -> str:
    """At which ends of the range values lie beyond it, as matplotlib calls that."""
    if low is None or high is None:
        return "neither"
    below, above = bool((data < low).any()), bool((data > high).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (below, above), "neither"
    )
