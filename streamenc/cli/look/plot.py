"""An image of what was encoded over time. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from streamenc.errors import OutputError, UsageError
from streamenc.graph.frames import StreamInfo


def plot_stream(
    info: StreamInfo,
    data: np.ndarray[Any, Any],
    path: Path,
    *,
    audio: np.ndarray[Any, Any] | None = None,
    audio_rate: float = 0.0,
    seconds: float | None = None,
    gaps_seconds: list[float] | None = None,
) -> None:
    """Draws codes as a map of entries, or features as an image, over seconds.

    data          (codebooks or bins, frames).
    audio         (samples,), drawn above them where given, at `audio_rate` Hz.
    seconds       How long `data` lasts; None where no frame was left out.
    gaps_seconds  Where the stream broke off; marked by lines.
    Raises UsageError where matplotlib is not installed, OutputError where `path` cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("plots need matplotlib: pip install 'streamenc[plot]'") from error
    if seconds is None:
        seconds = data.shape[1] / float(info.rate)
    rows = 1 if audio is None else 2
    figure = Figure(figsize=(12, 2.2 + 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    ratios = [1, 2][2 - rows :]
    axes = figure.subplots(rows, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    if audio is not None:
        times = np.arange(len(audio)) / audio_rate
        axes[0].plot(times, audio, linewidth=0.4, color="#335c81")
        axes[0].set_ylabel("amplitude")
        axes[0].margins(x=0)
    codes = info.kind == "codes"
    image = axes[-1].imshow(
        data,
        origin="upper" if codes else "lower",
        aspect="auto",
        interpolation="nearest",
        extent=(0, seconds, data.shape[0] - 0.5, -0.5) if codes else (0, seconds, 0, data.shape[0]),
        cmap="turbo" if codes else "magma",
    )
    for gap in gaps_seconds or []:
        axes[-1].axvline(gap, color="white", linewidth=1, linestyle=":")
    axes[-1].set_ylabel("codebook" if codes else "band")
    axes[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=axes[-1], label="entry" if codes else "value", pad=0.01)
    figure.suptitle(f"{info.kind} of {info.model}, {float(info.rate):g} frames a second")
    try:
        figure.savefig(path, dpi=120, format="png")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
